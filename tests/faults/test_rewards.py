"""A reward head hangs, returns nonsense or an HTTP error: its groups are dropped, counted and ordered again."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from negalign_ray.actors.run import train
from tests.actors.conftest import read_rows
from tests.faults.harness import both_engines, events, require_sound

pytestmark = [
    *(pytest.mark.real, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(400)),
]


def head(target: str, kind: str = "python", **more) -> str:
    return "scorers.heads=" + json.dumps([{"name": "words", "kind": kind, "target": target, **more}])


FAULTS = {"returns_nan": "returns NaN", "returns_one_too_few": "returns one score too few", "raises": "raises"}


@pytest.mark.parametrize("function", FAULTS)
def test_groups_that_a_head_fails_on_are_dropped_counted_and_ordered_again(toy_config, report, function):
    config = toy_config(head(f"tests.faults.heads:{function}"))
    summary = train(config)
    require_sound(config, summary)
    assert summary["orders"]["dropped_score"] == 4, "the wave that the head failed on"
    assert read_rows(config.run_dir / "metrics.jsonl")[-1]["scorer/failed"] == 4
    rewards = [
        response["rewards"]
        for row in read_rows(config.run_dir / "samples" / "rank-0.jsonl")
        for response in row["responses"]
    ]
    assert all(set(each) == {"words"} for each in rewards), "no score is missing, none was made up"
    report(f"a head {FAULTS[function]}", ended="goes on", seconds=None, config=config, summary=summary)


@both_engines
def test_a_head_that_hangs_is_ended_with_its_scorer_and_asked_again_in_a_new_one(toy_config, report, engine):
    config = toy_config(head("tests.faults.heads:hangs"), f"samplers.engine={engine}", "deadlines.score_s=10")
    summary = train(config)
    require_sound(config, summary)
    assert summary["orders"] == {"issued": 12, "trained": 12}
    fault, replace = events(config, "fault")[0], events(config, "replace")[0]
    assert "no answer within deadlines.score_s=10 s" in fault["reason"]
    seconds = replace["time_s"] - fault["time_s"]
    report("a head hangs; deadlines.score_s=10", ended="goes on", seconds=seconds, config=config, summary=summary)


class FailingServer(ThreadingHTTPServer):
    """Answers the first `num_failures` requests with HTTP 500, the others with the number of words."""

    def __init__(self, num_failures: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.left, self.lock = num_failures, threading.Lock()


class Handler(BaseHTTPRequestHandler):
    server: FailingServer

    def do_POST(self) -> None:
        pairs = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["pairs"]
        with self.server.lock:
            fails = self.server.left > 0
            self.server.left -= fails
        body = b"" if fails else json.dumps({"scores": [len(response.split()) for _, response in pairs]}).encode()
        self.send_response(500 if fails else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def serve():
    servers = []

    def start(num_failures: int) -> str:
        servers.append(FailingServer(num_failures))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/score"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_reward_service_that_answers_500_for_longer_than_its_retries_costs_groups_which_are_counted(
    toy_config, serve, report
):
    config = toy_config(head(serve(3), kind="http", max_retries=2, batch_size=1000))
    summary = train(config)
    require_sound(config, summary)
    assert summary["orders"]["dropped_score"] == 4, "three attempts, all failed; then a new order in each place"
    report("a reward service answers 500", ended="goes on", seconds=None, config=config, summary=summary)


def test_a_reward_service_that_comes_back_within_its_retries_costs_nothing(toy_config, serve):
    config = toy_config(head(serve(2), kind="http", max_retries=2, batch_size=1000))
    summary = train(config)
    require_sound(config, summary)
    assert summary["orders"] == {"issued": 12, "trained": 12}

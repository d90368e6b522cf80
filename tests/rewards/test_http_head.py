"""The HTTP head against a real local server: what is tried again, what fails at once, and that nothing becomes a 0."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from negalign_ray.config import HeadConfig
from negalign_ray.errors import ConfigError, ScoreError
from negalign_ray.rewards import build_head, check_head

PAIRS = [("Hi", "one"), ("Hi", "three"), ("Hi", "fifteen")]


class Server(ThreadingHTTPServer):
    """Answers each request with the next of `plan` (the last one repeats): a function of the handler and the pairs."""

    def __init__(self, plan):
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.requests_seen = list(plan), []
        self.test_is_over = threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/score"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests_seen.append((self.path, body))
        plan = self.server.plan
        act = plan.pop(0) if len(plan) > 1 else plan[0]
        act(self, body["pairs"])

    def log_message(self, *_):
        pass


def reply(handler, status, body=b"", headers=()):
    handler.send_response(status)
    for key, value in headers:
        handler.send_header(key, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def good(handler, pairs):
    reply(handler, 200, json.dumps({"scores": [len(response) for _, response in pairs]}).encode())


def status(code):
    return lambda handler, _: reply(handler, code, b"secret detail")


def body(text):
    return lambda handler, _: reply(handler, 200, text.encode())


def redirect(code, location):
    return lambda handler, _: reply(handler, code, headers=[("Location", location)])


def hang(handler, _):
    """No answer as long as the test runs: whoever comes back did not wait for one."""
    handler.server.test_is_over.wait()


def drip(handler, _):
    """A byte now and then, as long as the test runs: each read succeeds in time, the whole never does."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    with contextlib.suppress(ConnectionError):  # the client has hung up
        while not handler.server.test_is_over.wait(0.05):
            handler.wfile.write(b" ")
            handler.wfile.flush()


def hang_up(handler, _):
    handler.connection.close()


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    servers = []

    def start(*plan):
        server = Server(plan)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.test_is_over.set()
        server.shutdown()
        server.server_close()


def http_config(url, **settings):
    return HeadConfig(name="remote", kind="http", target=url, **{"deadline_s": 5.0, "max_retries": 2, **settings})


def test_pairs_are_posted_and_scores_come_back_in_order(serve):
    server = serve(good)
    assert build_head(http_config(server.url)).score(PAIRS) == [3.0, 5.0, 7.0]
    assert server.requests_seen == [("/score", {"pairs": [list(pair) for pair in PAIRS]})]


def test_a_request_holds_at_most_batch_size_pairs(serve):
    server = serve(good)
    assert build_head(http_config(server.url, batch_size=2)).score(PAIRS) == [3.0, 5.0, 7.0]
    assert [len(request["pairs"]) for _, request in server.requests_seen] == [2, 1]
    assert build_head(http_config(server.url)).score([]) == []


def test_a_500_is_tried_again_and_then_succeeds(serve):
    server = serve(status(500), status(503), good)
    assert build_head(http_config(server.url)).score(PAIRS) == [3.0, 5.0, 7.0]
    assert len(server.requests_seen) == 3


def test_a_dropped_connection_is_tried_again(serve):
    server = serve(hang_up, good)
    assert build_head(http_config(server.url)).score(PAIRS) == [3.0, 5.0, 7.0]


def test_after_the_retries_it_is_a_typed_failure_without_the_body(serve):
    server = serve(status(500))
    with pytest.raises(ScoreError, match=r"answered 500; gave up after 2 attempts \(max_retries=1\)") as caught:
        build_head(http_config(server.url, max_retries=1)).score(PAIRS)
    assert "secret" not in str(caught.value)
    assert len(server.requests_seen) == 2


def test_waits_between_attempts_grow(serve):
    server = serve(status(500))
    started = time.perf_counter()
    with pytest.raises(ScoreError):
        build_head(http_config(server.url, max_retries=2)).score(PAIRS)
    assert time.perf_counter() - started >= 0.25 + 0.5


@pytest.mark.timeout(60)  # without the deadline these servers keep the head for ever
@pytest.mark.parametrize("act", [hang, drip])
def test_the_deadline_bounds_the_whole_attempt(serve, act):
    server = serve(act)
    with pytest.raises(ScoreError, match=r"no answer in deadline_s=0\.3; gave up after 1 attempts"):
        build_head(http_config(server.url, deadline_s=0.3, max_retries=0)).score(PAIRS)


@pytest.mark.timeout(60)
def test_a_slow_attempt_is_tried_again(serve):
    server = serve(hang, good)
    # On a busy machine even a good answer may miss this deadline, so there are retries to spare.
    assert build_head(http_config(server.url, deadline_s=0.5, max_retries=8)).score(PAIRS) == [3.0, 5.0, 7.0]


def test_nobody_listening_is_a_typed_failure(serve):
    server = serve(good)
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(ScoreError, match=r"is not reachable \(ConnectError\)"):
        build_head(http_config(url, max_retries=0)).score(PAIRS)


@pytest.mark.parametrize("code", [400, 401, 404, 422])
def test_the_callers_own_fault_is_not_tried_again(serve, code):
    server = serve(status(code))
    with pytest.raises(ScoreError, match=f"answered {code}; expected 200") as caught:
        build_head(http_config(server.url)).score(PAIRS)
    assert "secret" not in str(caught.value)
    assert len(server.requests_seen) == 1


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_redirect_to_another_host_is_refused_and_gets_no_text(serve, code):
    other = serve(good)
    elsewhere = other.url.replace("127.0.0.1", "localhost") + "?key=secret"
    server = serve(redirect(code, elsewhere))
    with pytest.raises(ScoreError, match=f"redirects \\({code}\\) to http://localhost") as caught:
        build_head(http_config(server.url)).score(PAIRS)
    assert "secret" not in str(caught.value)
    assert other.requests_seen == []
    assert len(server.requests_seen) == 1


def test_a_redirect_to_another_port_is_another_host(serve):
    other = serve(good)
    server = serve(redirect(307, other.url))
    with pytest.raises(ScoreError, match="sent only to the configured host"):
        build_head(http_config(server.url)).score(PAIRS)
    assert other.requests_seen == []


def test_a_redirect_on_the_same_host_is_followed_and_bounded(serve):
    server = serve(redirect(307, "/v2/score"), good)
    assert build_head(http_config(server.url)).score(PAIRS) == [3.0, 5.0, 7.0]
    assert [path for path, _ in server.requests_seen] == ["/score", "/v2/score"]
    loop = serve(redirect(308, "/score"))
    with pytest.raises(ScoreError, match="more than 3 times"):
        build_head(http_config(loop.url)).score(PAIRS)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"scores": [1, 2]}', "2 scores for 3 pairs"),
        ('{"scores": [1, NaN, 2]}', "score 1 is nan"),
        ('{"scores": [1, Infinity, 2]}', "score 1 is inf"),
        ('{"scores": [1, null, 2]}', "score 1 is a NoneType"),
        ('{"scores": [1, "2", 2]}', "score 1 is a str"),
        ('{"scores": 0}', "returned int"),
        ('{"score": [1, 2, 3]}', 'without a "scores" list'),
        ("[1, 2, 3]", 'without a "scores" list'),
        ("secret", "did not answer with JSON"),
        ("", "did not answer with JSON"),
    ],
)
def test_an_answer_that_is_not_one_number_per_pair_is_a_typed_failure(serve, text, reason):
    server = serve(body(text))
    with pytest.raises(ScoreError, match=reason) as caught:
        build_head(http_config(server.url)).score(PAIRS)
    assert "secret" not in str(caught.value)
    assert len(server.requests_seen) == 1


def test_it_works_inside_a_running_event_loop(serve):
    import asyncio

    server = serve(good)
    head = build_head(http_config(server.url))

    async def inside():
        return head.score(PAIRS)

    assert asyncio.run(inside()) == [3.0, 5.0, 7.0]


@pytest.mark.parametrize(
    "url", ["localhost:8000/score", "ftp://host/score", "http://", "not a url", "http://host:port/"]
)
def test_a_malformed_url_is_refused_before_a_run(url):
    with pytest.raises(ConfigError, match="target="):
        check_head(http_config(url))


def test_a_malformed_url_is_shown_without_its_secrets():
    with pytest.raises(ConfigError) as caught:
        check_head(http_config("ftp://user:secret@host/path?token=secret"))
    assert "secret" not in str(caught.value)
    assert "ftp://host/path" in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://user:pw@host/score", "http://host/score?api_key=pw", "https://h/?a=1&Token=pw"]
)
def test_a_url_with_a_secret_is_refused_because_settings_are_written_to_files(url):
    with pytest.raises(ConfigError, match=r"holds .* written to config\.yaml.*token_env") as caught:
        check_head(http_config(url))
    assert "pw" not in str(caught.value).replace("passw", "")


def test_messages_do_not_show_the_query(serve):
    server = serve(status(500))
    with pytest.raises(ScoreError) as caught:
        build_head(http_config(f"{server.url}?model=hidden", max_retries=0)).score(PAIRS)
    assert "hidden" not in str(caught.value)


def test_a_key_comes_from_the_environment_and_is_shown_nowhere(serve, monkeypatch):
    seen = []

    def asks_for_a_key(handler, pairs):
        seen.append(handler.headers["Authorization"])
        good(handler, pairs)

    server = serve(asks_for_a_key)
    config = http_config(server.url, token_env="JUDGE_KEY")
    with pytest.raises(ConfigError, match=r"token_env=JUDGE_KEY names is not set.*every node that runs scorers"):
        check_head(config)
    monkeypatch.setenv("JUDGE_KEY", "hidden")
    head = build_head(config)
    assert head.score(PAIRS) == [3.0, 5.0, 7.0]
    assert seen == ["Bearer hidden"]
    assert "hidden" not in f"{head!r} {config!r}"

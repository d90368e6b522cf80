"""A run with a cluster of its own, as on a laptop: a second terminal finds it, and the token is nowhere but in Ray's
own file."""

import json
import os
import subprocess
import sys
import time

import pytest

from negalign_ray.actors.token import TOKEN_FILE
from negalign_ray.settings import dump_config
from tests.rewards.test_http_head import good, serve

__all__ = ["serve"]  # a fixture
pytestmark = [pytest.mark.real, pytest.mark.slow]
SECRET = "hidden-key-of-the-judge"


@pytest.fixture
def terminal(tmp_path):
    """Starts commands as a user of his own would, in one folder: (popen, run)."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"HOME": str(home), "JUDGE_KEY": SECRET}

    def start(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "negalign_ray.cli", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=environment, cwd=tmp_path, text=True, **pipes)

    return home, start


def run(start, *arguments: str) -> subprocess.CompletedProcess:
    process = start(*arguments)
    out, err = process.communicate(timeout=200)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.mark.timeout(450)
def test_a_second_terminal_sees_and_stops_the_run_and_neither_secrets_nor_texts_are_left_behind(
    terminal, serve, toy_config, tmp_path
):
    home, start = terminal
    service = serve(good)
    head = {"name": "judge", "kind": "http", "target": service.url, "token_env": "JUDGE_KEY"}
    config = toy_config(
        "learners.steps=500", "guards.enabled=false", f"scorers.heads=[{json.dumps(head)}]", name="mine"
    )
    (tmp_path / "mine.yaml").write_text(dump_config(config))
    training = start("train", "--config", "mine.yaml")
    try:
        deadline_s = time.monotonic() + 200
        while not (config.run_dir / "metrics.jsonl").is_file() or not (config.run_dir / "metrics.jsonl").read_text():
            assert training.poll() is None, training.communicate()
            assert time.monotonic() < deadline_s
            time.sleep(0.5)

        asked = run(start, "status", str(config.run_dir), "--json")
        assert asked.returncode == 0, asked.stderr
        overview = json.loads(asked.stdout)
        assert (overview["run"], overview["phase"]) == ("mine", "training")
        assert {role["role"] for role in overview["roles"]} >= {"sampler", "scorer", "reference", "learner"}

        shown = run(start, "logs", str(config.run_dir), "conductor")
        assert "conductor-0 | " in shown.stdout
        stopped = run(start, "stop", str(config.run_dir))
        assert stopped.returncode == 0, stopped.stderr
        assert "run mine has ended after step" in stopped.stdout
        out, err = training.communicate(timeout=60)
        assert training.returncode == 0, err
    finally:
        training.kill()
    ended = run(start, "status", str(config.run_dir))
    assert ended.returncode == 9
    assert "RunEndedError: run mine has ended; its results are in" in ended.stderr

    rows = [json.loads(line) for line in (config.run_dir / "samples" / "rank-0.jsonl").read_text().splitlines()]
    texts = {text for row in rows for text in (row["prompt"], *(each["text"] for each in row["responses"]))}
    public = [config.run_dir / "metrics.jsonl", config.run_dir / "config.yaml", *(config.run_dir / "logs").iterdir()]
    for text in (text for text in texts if len(text) > 20):
        assert not any(text in file.read_text() for file in public)
        assert text not in asked.stdout + shown.stdout

    token = (home / TOKEN_FILE).read_text()
    assert (home / TOKEN_FILE).stat().st_mode & 0o777 == 0o600
    said = [out, err, *(done.stdout + done.stderr for done in (asked, shown, stopped, ended))]
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path != home / TOKEN_FILE]
    assert len(files) > 10
    for text in (*said, *(path.read_bytes().decode(errors="replace") for path in files)):
        assert token not in text
        assert SECRET not in text

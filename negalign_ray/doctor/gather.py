"""Gathers the facts.

What may crash or hang (imports of big libraries, joining a cluster) is asked in processes of their own, with a
deadline: a broken torchvision must not end the program that looks for it.
"""

import importlib.util
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement as RequirementLine
from packaging.utils import canonicalize_name

from negalign_ray.doctor.checks import DASHBOARD_PORT, MEDIA_LIBRARIES, OWN, VLLM_BUILDS
from negalign_ray.doctor.facts import (
    UNKNOWN,
    Auth,
    Cluster,
    Facts,
    PackagedModelState,
    Requirement,
    Space,
    TorchBuild,
)
from negalign_ray.machine import list_gpus, machine_memory, num_cores
from negalign_ray.models.packaged import PACKAGED_MODELS, cache_dir, packaged_path

IMPORT_S, JOIN_S, CONNECT_S = 120.0, 60.0, 3.0
GCS_PORT, CLIENT_PORT = 6379, 10001
TIMED_OUT = 124  # as the program `timeout` ends
# In the way that a run meets them: transformers looks for torchvision when a model class is first named.
IMPORTS = {
    **{module: f"import torch, {module}" for module in MEDIA_LIBRARIES},
    "transformers": "from transformers import AutoModelForCausalLM, PreTrainedModel",
}
_TORCH = """
import json, torch
print(json.dumps([torch.__version__, torch.version.cuda, torch.cuda.device_count()]))
"""
_JOIN = """
import json, logging, ray
ray.init(logging_level=logging.CRITICAL, log_to_driver=False)
there = ray.cluster_resources()
alive = sum(node["Alive"] for node in ray.nodes())
print(json.dumps([alive, there.get("CPU", 0.0), there.get("GPU", 0.0), ray.__version__]))
ray.shutdown()
"""


def gather(run_dir: Path = Path("runs"), environment: Mapping[str, str] | None = None) -> Facts:
    """Everything about this machine, and the cluster that RAY_ADDRESS names. Takes some seconds; raises nothing.

    `environment` is that of the program at its start: importing the actors adds a token of their own to it.
    """
    variables = dict(os.environ if environment is None else environment)
    packages = installed_packages()
    with ThreadPoolExecutor(max_workers=2) as pool:  # each import takes a core
        modules = [module for module in IMPORTS if _is_installed(module)]
        errors = dict(zip(modules, pool.map(lambda module: import_error(IMPORTS[module]), modules), strict=True))
    address = variables.get("RAY_ADDRESS")
    return Facts(
        python=sys.version_info[:3],
        executable=sys.executable,
        packages=packages,
        requirements=tuple(requirements_of(OWN, *(build for build in VLLM_BUILDS if build in packages))),
        import_errors=errors,
        torch=torch_build(),
        num_cores=num_cores(),
        memory=machine_memory(),
        spaces=tuple(distinct_spaces(run_dir, cache_dir(), Path(variables.get("RAY_TMPDIR") or "/tmp"))),
        shm=space_of(Path("/dev/shm")) if Path("/dev/shm").is_dir() else None,
        ports={port: port_state(port) for port in (GCS_PORT, DASHBOARD_PORT, CLIENT_PORT)},
        local_cluster=local_cluster(Path(variables.get("RAY_TMPDIR") or "/tmp")),
        gpus=list_gpus(),
        visible_devices=variables.get("CUDA_VISIBLE_DEVICES"),
        auth=auth_of(variables, home=Path.home()),
        cluster=join_cluster(address, variables) if address else None,
        model=packaged_model(),
    )


def installed_packages() -> dict[str, str]:
    """Normalised name -> version; of two folders the one that is imported comes first."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(canonicalize_name(name), distribution.version)
    return found


def requirements_of(*packages: str) -> Iterator[Requirement]:
    """What they ask of others on this machine: of vLLM only its torch, of this package everything but its extras."""
    for package in packages:
        try:
            lines = metadata.requires(package) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in map(RequirementLine, lines):
            name = canonicalize_name(requirement.name)
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if applies and (package == OWN or name == "torch"):
                yield Requirement(package, name, str(requirement.specifier))


def import_error(code: str) -> str | None:
    """None when the code runs in a fresh process, else the last line of what it said; UNKNOWN when it took too long."""
    done = _run_python(code, timeout_s=IMPORT_S)
    if done.returncode == TIMED_OUT:
        return UNKNOWN
    return None if done.returncode == 0 else _last_line(done.stderr)


def torch_build() -> TorchBuild | None:
    if not _is_installed("torch"):
        return None
    answer = _answer(_run_python(_TORCH, timeout_s=IMPORT_S))
    return TorchBuild(*answer) if answer else None


def join_cluster(address: str, environment: Mapping[str, str]) -> Cluster:
    """Joins as a run would, in a process of its own, and leaves again."""
    listening = is_listening(address)
    if listening is False:
        return Cluster(address, listening, error="nothing answers at its port")
    done = _run_python(_JOIN, timeout_s=JOIN_S, environment=environment)
    answer = _answer(done)
    if answer is None:
        return Cluster(address, listening, error=_last_line(done.stderr))
    num_nodes, cpus, gpus, version = answer
    return Cluster(address, listening, None, num_nodes, cpus, gpus, ray_version=version)


def is_listening(address: str) -> bool | None:
    """Whether HOST:PORT (also ray://HOST:PORT) accepts connections; None for "auto" and "local"."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        return None
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S):
            return True
    except OSError:
        return False


def port_state(port: int) -> Literal["free", "taken"]:
    return "taken" if is_listening(f"127.0.0.1:{port}") else "free"


def local_cluster(temporary: Path) -> str | None:
    """Address of what `ray start` left running here, if it still answers."""
    try:
        address = (temporary / "ray" / "ray_current_cluster").read_text().strip()
    except OSError:
        return None
    return address if address and is_listening(address) else None


def auth_of(environment: Mapping[str, str], *, home: Path) -> Auth:
    """Where Ray looks for a token, in its order: the variable, the file that a variable names, the default file."""
    mode = environment.get("RAY_AUTH_MODE")
    if environment.get("RAY_AUTH_TOKEN"):
        return Auth(mode, "RAY_AUTH_TOKEN")
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token")
    if not path.is_file() or not path.stat().st_size:
        return Auth(mode, None)
    return Auth(mode, str(path), readable_by_others=bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)))


def distinct_spaces(*paths: Path) -> Iterator[Space]:
    """One for each file system."""
    seen: set[int] = set()
    for path in paths:
        space = space_of(path)
        device = space.path.stat().st_dev
        if device not in seen:
            seen.add(device)
            yield space


def space_of(path: Path) -> Space:
    """Of the nearest folder that exists: a run makes the others."""
    path = path.expanduser().absolute()
    while not path.is_dir():
        path = path.parent
    usage = shutil.disk_usage(path)
    return Space(path, usage.free, usage.total)


def packaged_model() -> PackagedModelState:
    name, package = next(iter(PACKAGED_MODELS.items()))
    return PackagedModelState(
        name,
        package.requirement,
        installed=_is_installed(package.module),
        converted=packaged_path(name).is_dir(),
    )


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _run_python(
    code: str, *, timeout_s: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        late = isinstance(error, subprocess.TimeoutExpired)
        reason = f"no answer within {timeout_s:g} s" if late else str(error)
        return subprocess.CompletedProcess(command, TIMED_OUT if late else 1, stdout="", stderr=reason)


def _answer(done: subprocess.CompletedProcess) -> list[Any] | None:
    """The JSON of the last line of its output; libraries may have written lines before it."""
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        return None
    return json.loads(lines[-1])


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip()[:300] if lines else "it ended without a word"

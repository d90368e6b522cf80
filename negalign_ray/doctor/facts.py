"""Everything the checks look at, as plain data, so that a test can make it up."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from negalign_ray.machine import Gpu, MachineMemory

UNKNOWN = "not known: the import took too long"  # in place of an error


@dataclass(frozen=True, slots=True)
class Requirement:
    """One line of what an installed package asks of another one (markers evaluated, extras left out)."""

    by: str  # the package that asks
    name: str  # of the other one, normalised
    specifier: str  # "==2.13.0+cpu"; "" = any version


@dataclass(frozen=True, slots=True)
class Space:
    path: Path
    free_bytes: int
    total_bytes: int

    @property
    def used_frac(self) -> float:
        return 1.0 - self.free_bytes / self.total_bytes if self.total_bytes else 1.0


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """What torch says of itself, asked in a process of its own."""

    version: str
    cuda: str | None  # the CUDA that it was built for; None = a build for CPUs
    num_gpus: int  # that it can use


@dataclass(frozen=True, slots=True)
class Auth:
    """Ray's token authentication as this process would do it."""

    mode: str | None  # RAY_AUTH_MODE
    token_from: str | None  # RAY_AUTH_TOKEN, or the path of a file; None = there is no token
    readable_by_others: bool = False  # the file


@dataclass(frozen=True, slots=True)
class Cluster:
    """What came of joining the cluster that RAY_ADDRESS names."""

    address: str
    listening: bool | None  # the port answers; None = the address has none to try
    error: str | None  # why joining failed; None = it worked
    num_nodes: int = 0
    cpus: float = 0.0
    gpus: float = 0.0
    ray_version: str | None = None


@dataclass(frozen=True, slots=True)
class PackagedModelState:
    name: str
    requirement: str  # what pip installs
    installed: bool
    converted: bool


@dataclass(frozen=True)
class Facts:
    python: tuple[int, int, int]
    executable: str
    packages: Mapping[str, str] = field(default_factory=dict)  # normalised name -> version
    requirements: tuple[Requirement, ...] = ()
    import_errors: Mapping[str, str | None] = field(
        default_factory=dict
    )  # module -> last line of its error; None = fine
    torch: TorchBuild | None = None
    num_cores: float = 1.0
    memory: MachineMemory | None = None
    spaces: tuple[Space, ...] = ()  # where a run writes
    shm: Space | None = None
    ports: Mapping[int, Literal["free", "taken"]] = field(default_factory=dict)
    local_cluster: str | None = None  # address of a cluster that `ray start` left running here
    gpus: tuple[Gpu, ...] = ()
    visible_devices: str | None = None  # CUDA_VISIBLE_DEVICES
    auth: Auth = Auth(None, None)
    cluster: Cluster | None = None  # None = RAY_ADDRESS is not set
    model: PackagedModelState | None = None

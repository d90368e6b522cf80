"""What this machine has, as a container sees it: cores, memory, GPUs. Standard library only; nothing is initialised."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    memory_bytes: int
    driver: str


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """The smaller of what the machine and its container have."""

    total_bytes: int
    available_bytes: int  # without swapping


def num_cores(cgroup: Path = CGROUP) -> float:
    """Cores that this process may use; a container's quota may be a fraction."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    return min(float(affinity), int(quota) / int(period)) if quota.isdigit() and period else float(affinity)


def machine_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = CGROUP) -> MachineMemory | None:
    """None where the system has no /proc."""
    amounts = {}
    for line in _read(meminfo).splitlines():
        name, _, rest = line.partition(":")
        amounts[name] = int(rest.split()[0]) * 1024
    if "MemTotal" not in amounts:
        return None
    total, available = amounts["MemTotal"], amounts.get("MemAvailable", amounts.get("MemFree", 0))
    limit, used = _read(cgroup / "memory.max"), _read(cgroup / "memory.current")
    if limit.isdigit() and used.isdigit():
        total, available = min(total, int(limit)), min(available, int(limit) - int(used))
    return MachineMemory(total, available)


def list_gpus(*, timeout_s: float = 10.0) -> tuple[Gpu, ...]:
    """As the driver lists them; () without a driver, or when it does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parse_gpus(done.stdout) if done.returncode == 0 else ()


def parse_gpus(listing: str) -> tuple[Gpu, ...]:
    """ "NVIDIA H100, 81559, 550.54" -> Gpu(name, bytes, driver), line by line."""
    rows = [[cell.strip() for cell in line.split(",")] for line in listing.splitlines() if line.strip()]
    return tuple(Gpu(name, int(mib) * MIB if mib.isdigit() else 0, driver) for name, mib, driver in rows)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""

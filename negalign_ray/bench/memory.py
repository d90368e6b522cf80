"""Peak memory of each role, read from the kernel while a run goes on."""

import os
from pathlib import Path

ROLE_OF_CLASS = {
    "Conductor": "conductor",
    "Sampler": "sampler",
    "Scorer": "scorer",
    "Reference": "reference",
    "RayTrainWorker": "learner",
}


class PeakMemory:
    """Highest resident set per role, over all its processes; object-store pages that a process maps count for it.

    Call `look` now and then: the kernel keeps each process's own high-water mark, so nothing between two calls is
    missed but what a process that ended took after the last one. Only processes that this one started are seen.
    """

    def __init__(self) -> None:
        self.bytes_by_role: dict[str, int] = {}

    def look(self) -> None:
        for pid in _descendants(os.getpid()):
            role, peak = _role_and_peak(pid)
            if role is not None:
                self.bytes_by_role[role] = max(self.bytes_by_role.get(role, 0), peak)


def role_of(title: str) -> str | None:
    """`ray::Sampler.sample` -> "sampler"; None for what is no role of ours."""
    if not title.startswith("ray::"):
        return None
    return ROLE_OF_CLASS.get(title.removeprefix("ray::").split(".")[0].strip())


def _role_and_peak(pid: int) -> tuple[str | None, int]:
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it ended meanwhile
        return None, 0
    peak_kib = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")), "0")
    return role_of(title), int(peak_kib) * 1024


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(after_name[1]), []).append(int(path.parent.name))
    found, frontier = [], [root]
    while frontier:
        frontier = [child for parent in frontier for child in children.get(parent, [])]
        found += frontier
    return found

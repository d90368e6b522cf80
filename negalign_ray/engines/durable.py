"""Writing that survives a crash, and paths that stay where they belong."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from negalign_ray.errors import CheckpointError


class Disk(Protocol):
    """The operations whose order decides what a crash leaves behind. Tests hand in one that dies between two."""

    def write(self, path: Path, content: bytes) -> None:
        """The whole file is on the disk when this returns."""

    def sync(self, path: Path) -> None:
        """What was written to this file, or the names inside this folder, is on the disk when this returns."""

    def rename(self, old: Path, new: Path) -> None:
        """Atomic; `new` is replaced if it is a file."""

    def remove(self, folder: Path) -> None: ...


class LocalDisk:
    def write(self, path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def sync(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        os.replace(old, new)

    def remove(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, value: Mapping[str, Any], *, disk: Disk) -> None:
    """All of it or nothing: a temporary file, synced, renamed, and the folder synced. Readers meet old or new."""
    temporary = path.with_name(f".{path.name}.tmp")
    disk.write(temporary, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())
    disk.rename(temporary, path)
    disk.sync(path.parent)


def inside(root: Path, name: str) -> Path:
    """`root / name`, for a name that was read from a file.

    CheckpointError when it leads out of `root`: through `..`, as an absolute path, or over a symbolic link.
    """
    parts = PurePosixPath(name)
    path = root / parts
    if not name or "\\" in name or parts.is_absolute() or ".." in parts.parts or not _is_below(path, root):
        raise CheckpointError(f"the file name {name!r} leads out of {root}; this is no checkpoint of ours, delete it.")
    return path


def _is_below(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())

"""Whether what a command is to write can be written, seen before minutes of work; and the message where it cannot."""

import os
import tempfile
from pathlib import Path

from negalign_ray.errors import NO_ACCESS, NO_ROOM, ConfigError, StorageError


def require_file(path: Path | None, *, option: str) -> None:
    """ConfigError or StorageError unless a file can be written there; nothing is left behind, no folder either."""
    if path is None:
        return
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder; name a file, as in {path / 'NAME'}.")
    if path.exists():
        if not os.access(path, os.W_OK):
            raise StorageError(f"{option} {path} cannot be written: no permission; name another file.")
        return
    _try(path.parent, shown=path, option=option)


def require_folder(path: Path | None, *, option: str) -> None:
    """The same for a folder, which need not exist yet."""
    if path is not None:
        _try(path, shown=path, option=option)


def _try(folder: Path, *, shown: Path, option: str) -> None:
    """A file without a name in the nearest folder that exists: permissions alone say nothing about /proc or to root."""
    try:
        existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        if not existing.is_dir():
            raise ConfigError(f"{option} {shown}: {existing} is a file, not a folder; name another place.")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise StorageError(
            f"{option} {shown} cannot be written: {error.strerror or error}; {remedy(error)}."
        ) from error


def storage_error(error: OSError) -> StorageError | None:
    """What a file system refuses, as a message; None for any other error, which is a fault of ours."""
    if error.errno not in (*NO_ROOM, *NO_ACCESS):
        return None
    where = error.filename2 or error.filename
    return StorageError(f"{f'{where}: ' if where else ''}{error.strerror or error}; {remedy(error)}.")


def remedy(error: OSError) -> str:
    if error.errno in NO_ROOM:
        return "the disk is full, or a quota is used up: free some space, or name another place"
    return "name another place, or change its permissions"

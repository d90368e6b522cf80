"""Copies of checkpoints in another place (`checkpoints.url`): made while the run goes on, within a deadline each.

<url>/<run name>/step-00000012/...      manifest.json comes last: a folder without one is no checkpoint
"""

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from negalign_ray.engines.checkpoints import MANIFEST, NAME, Checkpoint, CheckpointStore, name_of, read_checkpoint
from negalign_ray.errors import ConfigError, UploadError

log = logging.getLogger(__name__)


class Remote(Protocol):
    """The part of an fsspec file system that is used here."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None: ...

    def put_file(self, lpath: str, rpath: str) -> None: ...

    def get_file(self, rpath: str, lpath: str) -> None: ...

    def ls(self, path: str, detail: bool = True) -> list[Any]: ...

    def exists(self, path: str) -> bool: ...

    def rm(self, path: str, recursive: bool = False) -> None: ...


def open_remote(url: str) -> tuple[Remote, str]:
    """The file system of `checkpoints.url` and the path on it. ConfigError: unknown scheme, or a password inside."""
    from fsspec.core import url_to_fs

    if urlsplit(url).password is not None:
        raise ConfigError(
            "checkpoints.url holds a password, which would stand in config.yaml; leave it out and give it to the file "
            "system through its environment variables."
        )
    try:
        remote, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"checkpoints.url={url} cannot be opened: {error}; install that package, or change it."
        ) from error
    return remote, path


class Uploader:
    """Copies in a thread of its own, one checkpoint at a time.

    What fails is logged and kept in `errors`; the local copy is never touched.
    """

    def __init__(self, remote: Remote, path: str, *, deadline_s: float) -> None:
        self._remote, self._path, self._deadline_s = remote, path.rstrip("/"), deadline_s
        self.errors: list[UploadError] = []
        self._running: threading.Thread | None = None  # the current upload; one that was given up may still be alive
        self._source: Path | None = None  # what is being copied
        self._started_s = 0.0
        self._waiting: tuple[Checkpoint, Sequence[Checkpoint]] | None = None  # the newest that came meanwhile

    @property
    def busy_with(self) -> Path | None:
        """The checkpoint that is being copied, which must stay where it is; None once it is there or given up."""
        if self._running is not None and (not self._running.is_alive() or self._seconds_left == 0.0):
            self._join()
        return self._source

    def upload(self, checkpoint: Checkpoint, *, keep: Sequence[Checkpoint]) -> None:
        """Start copying, and return; afterwards, older copies of others than `keep` are deleted there.

        While another one is being copied this one waits for `finish`, or until a newer one takes its place: a slow
        place gets fewer copies, and never holds up a run.
        """
        if self.busy_with is not None:
            log.info("%s is not copied yet: %s is still on its way", checkpoint.path.name, self._source)
            self._waiting = checkpoint, keep
            return
        self._waiting, self._source, self._started_s = None, checkpoint.path, time.monotonic()
        kept = {each.path.name for each in (*keep, checkpoint)}
        self._running = threading.Thread(
            target=self._copy, args=(checkpoint, kept), daemon=True, name=f"upload {checkpoint.path.name}"
        )
        self._running.start()

    def finish(self) -> None:
        """Until the newest checkpoint is there or given up; each copy has its own deadline."""
        self._join()
        if self._waiting is not None:
            checkpoint, keep = self._waiting
            self.upload(checkpoint, keep=keep)
            self._join()

    @property
    def _seconds_left(self) -> float:
        return max(0.0, self._started_s + self._deadline_s - time.monotonic())

    def _join(self) -> None:
        if self._running is None:
            return
        thread = self._running
        thread.join(self._seconds_left)
        self._running = self._source = None
        if thread.is_alive():
            self._failed(f"{thread.name} took longer than deadlines.upload_s={self._deadline_s:g} s")

    def _copy(self, checkpoint: Checkpoint, kept: set[str]) -> None:
        """In its thread. One that was given up does no more than end the call it is in: what it was told to keep is
        out of date, and a newer copy may be on its way."""
        target = f"{self._path}/{checkpoint.path.name}"
        try:
            for name in (*checkpoint.files, MANIFEST):  # the manifest last
                if self._is_given_up:
                    return
                remote_name = f"{target}/{name}"
                self._remote.makedirs(remote_name.rpartition("/")[0], exist_ok=True)
                self._remote.put_file(str(checkpoint.path / name), remote_name)
            for other in _names(self._remote, self._path):
                if self._is_given_up:
                    return
                if other < checkpoint.path.name and other not in kept:  # never what may be a later upload's
                    self._remote.rm(f"{self._path}/{other}", recursive=True)
        except Exception as error:  # whatever a file system raises: the run must not end for a copy
            if not self._is_given_up:  # that has been said
                self._failed(f"{checkpoint.path.name} could not be copied to checkpoints.url: {error!r}")

    @property
    def _is_given_up(self) -> bool:
        """Of the thread that asks."""
        return self._running is not threading.current_thread()

    def _failed(self, reason: str) -> None:
        error = UploadError(f"{reason}; the local copy is complete. The next checkpoint is tried again.")
        log.warning("%s", error)
        self.errors.append(error)


def download_newest(remote: Remote, path: str, store: CheckpointStore) -> Checkpoint | None:
    """Bring the newest complete copy into an empty store, checked like a local one; None when there is none."""
    path = path.rstrip("/")
    for name in reversed(_names(remote, path)):
        if not remote.exists(f"{path}/{name}/{MANIFEST}"):
            continue
        step = int(name.removeprefix("step-"))
        partial = store.begin(step)
        named = partial.with_name(name_of(step))
        partial.rename(named)  # `read_checkpoint` holds the step against the folder's name
        remote.get_file(f"{path}/{name}/{MANIFEST}", str(named / MANIFEST))
        checkpoint = read_checkpoint(named)  # refuses names that lead out of the folder, before anything is written
        for file in checkpoint.files:
            (named / file).parent.mkdir(parents=True, exist_ok=True)
            remote.get_file(f"{path}/{name}/{file}", str(named / file))
        faults = checkpoint.faults()
        if not faults:
            return checkpoint
        log.warning("the copy %s is torn and is passed over: %s", name, "; ".join(faults[:3]))
        store.discard_after(step - 1)
    return None


def _names(remote: Remote, path: str) -> list[str]:
    """Checkpoint folders there, oldest first."""
    if not remote.exists(path):
        return []
    names = (str(entry["name"] if isinstance(entry, dict) else entry) for entry in remote.ls(path))
    found = (name.rstrip("/").rpartition("/")[2] for name in names)
    return sorted(name for name in found if NAME.fullmatch(name))

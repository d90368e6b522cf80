"""Copies of checkpoints in another place (`checkpoints.url`): made while the run goes on, within a deadline each.

<url>/<run name>/step-00000012/...      manifest.json comes last: a folder without one is no checkpoint

A manifest also says which run it is of: an earlier one of the same name may have left copies of later steps there.
"""

import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from negalign_ray.engines.checkpoints import MANIFEST, NAME, Checkpoint, CheckpointStore, read_checkpoint, step_of
from negalign_ray.errors import CheckpointError, ConfigError, UploadError

log = logging.getLogger(__name__)
Refuse = Callable[[Checkpoint], str | None]  # -> why this copy is not to be used; None = it may be


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

    def __init__(self, remote: Remote, path: str, *, run_id: str | None, deadline_s: float) -> None:
        """`run_id` is what the checkpoints' `info` says of their run."""
        self._remote, self._path, self._deadline_s = remote, path.rstrip("/"), deadline_s
        self._run_id = run_id
        self.errors: list[UploadError] = []
        self._running: threading.Thread | None = None  # what is done now; what was given up may still be alive
        self._source: Path | None = None  # what is being copied
        self._started_s = 0.0
        self._waiting: tuple[Checkpoint, Sequence[Checkpoint]] | None = None  # the newest that came meanwhile

    @property
    def busy_with(self) -> Path | None:
        """The checkpoint that is being copied, which must stay where it is; None once it is there or given up."""
        self._is_busy()
        return self._source

    def upload(self, checkpoint: Checkpoint, *, keep: Sequence[Checkpoint]) -> None:
        """Start copying, and return; afterwards, copies of others than `keep` are deleted there: older ones, and those
        of later steps that this run has written before it went back.

        While another one is being copied this one waits for `finish`, or until a newer one takes its place: a slow
        place gets fewer copies, and never holds up a run.
        """
        if self._is_busy():
            log.info("%s is not copied yet: what came before it is still on its way", checkpoint.path.name)
            self._waiting = checkpoint, keep
            return
        self._waiting = None
        kept = {each.path.name for each in (*keep, checkpoint)}
        self._start(f"upload {checkpoint.path.name}", self._copy, checkpoint, kept, source=checkpoint.path)

    def discard_after(self, step: int) -> None:
        """The run goes back to `step`: start to delete its copies of later ones, and return. What is being copied, or
        waits for it, is such a one."""
        given_up, self._waiting = self._running, None
        self._start(f"discarding what is newer than step {step}", self._discard, step, given_up)

    def finish(self) -> None:
        """Until the newest checkpoint is there or given up; each copy has its own deadline."""
        self._join()
        if self._waiting is not None:
            checkpoint, keep = self._waiting
            self.upload(checkpoint, keep=keep)
            self._join()

    def _start(self, name: str, work: Callable[..., None], *arguments: Any, source: Path | None = None) -> None:
        self._source, self._started_s = source, time.monotonic()
        self._running = threading.Thread(target=work, args=arguments, daemon=True, name=name)
        self._running.start()

    def _is_busy(self) -> bool:
        if self._running is not None and (not self._running.is_alive() or self._seconds_left == 0.0):
            self._join()
        return self._running is not None

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
            if self._remote.exists(f"{target}/{MANIFEST}"):  # of another run, or from before this one went back
                self._remote.rm(f"{target}/{MANIFEST}")
            for name in (*checkpoint.files, MANIFEST):  # the manifest last
                if self._is_given_up:
                    return
                remote_name = f"{target}/{name}"
                self._remote.makedirs(remote_name.rpartition("/")[0], exist_ok=True)
                self._remote.put_file(str(checkpoint.path / name), remote_name)
            for other in _names(self._remote, self._path):
                is_older = other < checkpoint.path.name and other not in kept
                if not is_older and (other <= checkpoint.path.name or not self._is_own(other)):
                    continue
                if self._is_given_up:
                    return
                self._remote.rm(f"{self._path}/{other}", recursive=True)
        except Exception as error:  # whatever a file system raises: the run must not end for a copy
            if not self._is_given_up:  # that has been said
                self._failed(f"{checkpoint.path.name} could not be copied to checkpoints.url: {error!r}")

    def _discard(self, step: int, given_up: threading.Thread | None) -> None:
        """In its thread, as `_copy`."""
        try:
            if given_up is not None:  # it may be within the call that makes its copy a whole one
                given_up.join(self._deadline_s)
            for name in _names(self._remote, self._path):
                if step_of(Path(name)) <= step or not self._is_own(name):
                    continue
                if self._is_given_up:
                    return
                self._remote.rm(f"{self._path}/{name}", recursive=True)
        except Exception as error:
            if not self._is_given_up:
                self._failed(f"copies of later steps than {step} could not be deleted at checkpoints.url: {error!r}")

    def _is_own(self, name: str) -> bool:
        """Whether that copy is one of this run's. A folder without a manifest is no copy yet."""
        manifest = f"{self._path}/{name}/{MANIFEST}"
        if not self._remote.exists(manifest):
            return False
        with tempfile.TemporaryDirectory() as folder:
            self._remote.get_file(manifest, f"{folder}/{MANIFEST}")
            try:
                return json.loads(Path(folder, MANIFEST).read_text(encoding="utf-8"))["info"].get("run") == self._run_id
            except (ValueError, KeyError, TypeError, AttributeError):  # torn: nobody's
                return False

    @property
    def _is_given_up(self) -> bool:
        """Of the thread that asks."""
        return self._running is not threading.current_thread()

    def _failed(self, reason: str) -> None:
        error = UploadError(f"{reason}; the local copy is complete. The next checkpoint is tried again.")
        log.warning("%s", error)
        self.errors.append(error)


def download_newest(
    remote: Remote, path: str, store: CheckpointStore, *, refuse: Refuse, deadline_s: float
) -> Checkpoint | None:
    """Bring the newest intact copy into the store, checked like a local one; None when there is no copy at all. Those
    that `refuse` says something of are passed over.

    CheckpointError: all copies are torn or refused, the place does not answer, or `deadline_s` is over. Whatever is
    interrupted, the store shows the whole copy or nothing of it.
    """
    download = _Download(remote, path.rstrip("/"), store, refuse)
    threading.Thread(target=download.run, daemon=True, name="download").start()  # file systems have no deadlines
    try:
        if not download.ended.wait(deadline_s):
            raise CheckpointError(
                f"no copy could be fetched from checkpoints.url within deadlines.upload_s={deadline_s:g} s; raise it, "
                f"or copy the newest folder of {path} to {store.folder} by hand."
            )
    finally:
        download.is_given_up = True
    if download.error is not None:
        raise download.error
    return download.found


class _Download:
    """Runs in a thread of its own, and does no more than end the call it is in when it is given up."""

    def __init__(self, remote: Remote, path: str, store: CheckpointStore, refuse: Refuse) -> None:
        self._remote, self._path, self._store, self._refuse = remote, path, store, refuse
        self.found: Checkpoint | None = None
        self.error: CheckpointError | None = None
        self.ended = threading.Event()
        self.is_given_up = False

    def run(self) -> None:
        try:
            self.found = self._newest_intact()
        except CheckpointError as error:
            self.error = error
        except Exception as error:  # whatever a file system raises
            self.error = CheckpointError(
                f"the copies of checkpoints in {self._path} (checkpoints.url) could not be fetched: {error!r}; see to "
                "it, and try again."
            )
            self.error.__cause__ = error
        finally:
            self.ended.set()

    def _newest_intact(self) -> Checkpoint | None:
        reasons = []
        for name in reversed(_names(self._remote, self._path)):
            if self.is_given_up:
                return None
            if not self._remote.exists(f"{self._path}/{name}/{MANIFEST}"):
                continue
            try:
                return self._fetch(name)
            except CheckpointError as error:
                reasons.append(f"{name}: {error}".rstrip("."))
            except FileNotFoundError as error:  # other errors of a file system say nothing about the copy
                reasons.append(f"{name}: a file is missing ({error})")
            log.warning("the copy %s; it is passed over", reasons[-1])
            self._store.abandon(step_of(Path(name)))
        if reasons:
            raise CheckpointError(
                f"none of the {len(reasons)} copies in {self._path} (checkpoints.url) can be used. The newest, "
                f"{reasons[0]}. Start a new run, or put an intact one there."
            )
        return None

    def _fetch(self, name: str) -> Checkpoint | None:
        """CheckpointError when the copy is torn or refused; None when this download is given up."""
        partial = self._store.begin(step_of(Path(name)))
        self._remote.get_file(f"{self._path}/{name}/{MANIFEST}", str(partial / MANIFEST))
        copy = read_checkpoint(partial)  # refuses names that lead out of the folder, before anything is written
        reason = self._refuse(copy)
        if reason is not None:
            raise CheckpointError(reason)
        for file in copy.files:
            if self.is_given_up:
                return None
            (partial / file).parent.mkdir(parents=True, exist_ok=True)
            self._remote.get_file(f"{self._path}/{name}/{file}", str(partial / file))
        faults = copy.faults()
        if faults:
            raise CheckpointError(f"it is torn: {'; '.join(faults[:3])}")
        return None if self.is_given_up else self._store.adopt(copy)


def _names(remote: Remote, path: str) -> list[str]:
    """Checkpoint folders there, oldest first."""
    if not remote.exists(path):
        return []
    names = (str(entry["name"] if isinstance(entry, dict) else entry) for entry in remote.ls(path))
    found = (name.rstrip("/").rpartition("/")[2] for name in names)
    return sorted(name for name in found if NAME.fullmatch(name))

"""The checkpoints of a run: complete or not there, checked before they are used, and no more of them than asked for.

    begin(12) --> .step-00000012.partial/ <-- whoever has state writes its files
    commit(12) --> checksums, manifest.json, all synced --> renamed to step-00000012/ --> older ones deleted

A crash at any point leaves the previous checkpoint, or this one, or both. The folders themselves are the truth;
<run>/manifest.json tells people and tools which one is the newest.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from negalign_ray.config import CheckpointsConfig
from negalign_ray.engines.durable import Disk, LocalDisk, inside, write_json
from negalign_ray.errors import CheckpointError

log = logging.getLogger(__name__)

FOLDER, MANIFEST = "checkpoints", "manifest.json"
FORMAT = 1  # of manifest.json; raised when an older program could not read it
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")  # endings
NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A finished folder and what its manifest says; the files are checked by `faults`."""

    path: Path
    step: int  # optimizer steps done = weight version
    metric: float | None  # value of checkpoints.keep_best
    files: Mapping[str, Mapping[str, Any]]  # name -> {"sha256", "bytes"}
    info: Mapping[str, Any]  # what `commit` was given: the run's fingerprint

    def faults(self) -> list[str]:
        """What is wrong with its files; empty = intact. Reads all of them."""
        return [fault for name, wanted in self.files.items() if (fault := _fault(self.path, name, wanted))]


class CheckpointStore:
    """Of one run directory. One process at a time may write."""

    def __init__(self, run_dir: Path, config: CheckpointsConfig, *, disk: Disk | None = None) -> None:
        self._run_dir, self._config = run_dir, config
        self.folder = run_dir / FOLDER
        self._disk = disk or LocalDisk()

    def begin(self, step: int) -> Path:
        """An empty folder for the files of `step`."""
        partial = self.partial(step)
        self._disk.remove(partial)
        partial.mkdir(parents=True)
        return partial

    def partial(self, step: int) -> Path:
        """The folder that `begin` made. Hidden: no one's pattern for finished checkpoints finds it."""
        return self.folder / f".{name_of(step)}.partial"

    def commit(
        self,
        step: int,
        *,
        metric: float | None = None,
        info: Mapping[str, Any] | None = None,
        in_use: Path | None = None,
    ) -> Checkpoint:
        """Seal what was written into `begin(step)`, then delete what need not be kept, but for the one `in_use`."""
        partial, final = self.partial(step), self.folder / name_of(step)
        if final.exists():  # a run that was resumed here and stopped again at once: nothing has changed since
            self._disk.remove(partial)
            return read_checkpoint(final)
        files = {}
        for path in sorted(path for path in partial.rglob("*") if path.is_file()):
            self._disk.sync(path)
            files[path.relative_to(partial).as_posix()] = {"sha256": digest(path), "bytes": path.stat().st_size}
        for folder in (path for path in partial.rglob("*") if path.is_dir()):
            self._disk.sync(folder)
        manifest = {"format": FORMAT, "step": step, "metric": metric, "files": files, "info": dict(info or {})}
        write_json(partial / MANIFEST, manifest | {"checksum": _checksum(manifest)}, disk=self._disk)
        self._disk.rename(partial, final)
        self._disk.sync(self.folder)
        checkpoint = read_checkpoint(final)
        self._write_run_manifest(checkpoint)
        self._prune(in_use)
        return checkpoint

    def adopt(self, copy: Checkpoint) -> Checkpoint:
        """Give an intact copy that was brought into `begin(step)` its place; a torn one there gives way."""
        final = self.folder / name_of(copy.step)
        if final.exists():
            self._delete(final)
        self._disk.rename(copy.path, final)
        self._disk.sync(self.folder)
        return replace(copy, path=final)

    def abandon(self, step: int) -> None:
        """Delete what was written into `begin(step)`."""
        self._disk.remove(self.partial(step))

    def checkpoints(self) -> list[Checkpoint]:
        """Those with a readable manifest, oldest first; others are named in the log."""
        found = []
        for path in self._named():
            try:
                found.append(read_checkpoint(path))
            except CheckpointError as error:
                log.warning("%s", error)
        return found

    def newest_intact(self) -> Checkpoint | None:
        """The newest whose files are all what they were when written; None when there has been none at all.

        CheckpointError when there are some, but all of them are torn.
        """
        reasons = []
        for path in reversed(self._named()):
            try:
                checkpoint = read_checkpoint(path)
            except CheckpointError as error:
                reason = str(error).rstrip(".")
            else:
                faults = checkpoint.faults()
                if not faults:
                    return checkpoint
                reason = f"{path} is torn: {'; '.join(faults[:3])}"
            log.warning("%s; it is passed over", reason)
            reasons.append(reason)
        if reasons:
            raise CheckpointError(
                f"none of the {len(reasons)} checkpoints in {self.folder} is intact. The newest: {reasons[0]}. Copy "
                "them from checkpoints.url or a backup, or start a new run."
            )
        return None

    def newest_before(self, step: int) -> Checkpoint | None:
        """The newest intact one of at most `step` steps."""
        old_enough = [checkpoint for checkpoint in self.checkpoints() if checkpoint.step <= step]
        return next((checkpoint for checkpoint in reversed(old_enough) if not checkpoint.faults()), None)

    def discard_after(self, step: int) -> None:
        """Before a run goes on from `step`: delete what is newer, and whatever a crash left unfinished."""
        for leftover in self.folder.glob(".*"):
            self._disk.remove(leftover)
        for path in self._named():
            if step_of(path) > step:
                self._delete(path)

    def clear(self) -> None:
        """Delete all of them: the run is over."""
        self._disk.remove(self.folder)
        (self._run_dir / MANIFEST).unlink(missing_ok=True)

    def _named(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if NAME.fullmatch(path.name))

    def _write_run_manifest(self, newest: Checkpoint) -> None:
        manifest = {
            "format": FORMAT,
            "step": newest.step,
            "weight_version": newest.step,
            "checkpoint": f"{FOLDER}/{newest.path.name}",
        }
        write_json(self._run_dir / MANIFEST, manifest, disk=self._disk)

    def _prune(self, in_use: Path | None) -> None:
        kept = {checkpoint.path for checkpoint in kept_of(self.checkpoints(), self._config)}
        for path in self._named():
            if path not in kept and path != in_use:
                self._delete(path)

    def _delete(self, path: Path) -> None:
        """Renamed first, so that a crash half-way leaves no checkpoint that looks torn."""
        trash = path.with_name(f".{path.name}.trash")
        self._disk.rename(path, trash)
        self._disk.remove(trash)


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """Of a finished folder, or of one that `begin` made."""
    return int(path.name.removeprefix(".").removeprefix("step-").removesuffix(".partial"))


def kept_of(checkpoints: Sequence[Checkpoint], config: CheckpointsConfig) -> list[Checkpoint]:
    """The newest `keep_last`, and the best by `keep_best` (the earlier of equals)."""
    newest = sorted(checkpoints, key=lambda checkpoint: checkpoint.step)[-config.keep_last :]
    measured = [checkpoint for checkpoint in checkpoints if checkpoint.metric is not None]
    if config.keep_best is None or not measured:
        return newest
    sign = 1.0 if config.best_is == "lowest" else -1.0
    best = min(measured, key=lambda checkpoint: (sign * (checkpoint.metric or 0.0), checkpoint.step))
    return newest if best in newest else [best, *newest]


def read_checkpoint(path: Path) -> Checkpoint:
    """From its manifest. CheckpointError when that is missing, torn, of another format, or names files elsewhere."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        checksum = manifest.pop("checksum")
        if manifest["format"] != FORMAT:
            raise CheckpointError(
                f"{path} was written in format {manifest['format']}, this program reads {FORMAT}; use the version of "
                "negalign_ray that wrote it."
            )
        if checksum != _checksum(manifest) or manifest["step"] != step_of(path):
            raise CheckpointError(f"{path / MANIFEST} is not what was written; it is passed over.")
        if path.is_symlink():
            raise CheckpointError(f"{path} is a link to {path.resolve()}; a checkpoint lies in its own run directory.")
        for name in manifest["files"]:
            inside(path, name)
            if name.endswith(PICKLES):
                raise CheckpointError(
                    f"{path} lists {name}, a pickle: loading one runs the code inside it. Our checkpoints hold none "
                    "(safetensors and JSON); this one is not used."
                )
        return Checkpoint(path, manifest["step"], manifest["metric"], manifest["files"], manifest["info"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is torn: its {MANIFEST} cannot be read ({error!r}).") from error


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fault(folder: Path, name: str, wanted: Mapping[str, Any]) -> str | None:
    path = inside(folder, name)
    if not path.is_file():
        return f"{name} is missing"
    size = path.stat().st_size
    if size != wanted["bytes"]:
        return f"{name} has {size} bytes, not {wanted['bytes']}"
    return None if digest(path) == wanted["sha256"] else f"{name} has another checksum"


def _checksum(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()

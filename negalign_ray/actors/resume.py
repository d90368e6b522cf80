"""`negalign-ray train --resume RUN`: which checkpoint a run goes on from, and what must be the same as before."""

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from negalign_ray.actors.evaluator import SIDES_FILE
from negalign_ray.config import Config, RunConfig
from negalign_ray.engines.checkpoints import Checkpoint, CheckpointStore
from negalign_ray.engines.uploads import download_newest, open_remote
from negalign_ray.errors import CheckpointError, ConfigError
from negalign_ray.metrics import FILE_NAME
from negalign_ray.settings import dump_config, load_config
from negalign_ray.settings.fingerprint import HARMLESS_ON_RESUME, changes
from negalign_ray.settings.run_id import read_run_id, write_run_id

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumption:
    config: Config
    checkpoint: Checkpoint


def find_checkpoint(run_dir: Path, *, overrides: Sequence[str] = ()) -> Resumption:
    """The newest intact checkpoint of a run, and the run's settings with those of `overrides` that change no result.

    ConfigError: no run, nothing left to train, or settings or inputs that differ. CheckpointError: no checkpoint, or
    none that is intact, here or in checkpoints.url. Nothing is changed on the disk, but for a copy fetched
    from there.
    """
    file = run_dir / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"--resume {run_dir}: there is no {file}; name the folder of a run, <run.dir>/<run.name>.")
    config = _in_place(load_config(file=file, overrides=overrides), run_dir)
    store = CheckpointStore(config.run_dir, config.checkpoints)
    steps = config.learners.steps
    done = _steps_of_summary(run_dir)
    if done is not None and done >= load_config(file=file).learners.steps:
        raise ConfigError(
            f"--resume {run_dir}: the run has taken all of its {done} steps; nothing is left to train. Start "
            f"a run from its model with --set model.path={run_dir / 'model'}."
        )
    checkpoint = _newest(config, store)
    if checkpoint is None:
        raise CheckpointError(
            f"--resume {run_dir}: it has no checkpoint. It ended before the first one (checkpoints.every, "
            f"{config.checkpoints.interval(steps)} steps); start it again with --config {file} "
            "--set run.overwrite=true."
        )
    if checkpoint.step >= steps:
        raise ConfigError(
            f"--resume {run_dir}: its checkpoint stands at step {checkpoint.step} of learners.steps={steps}; nothing "
            "is left to train."
        )
    different = changes(checkpoint.info["fingerprint"], config, harmless=HARMLESS_ON_RESUME)
    if different:
        raise ConfigError(
            f"--resume {run_dir}: the run was made with other settings or inputs: {'; '.join(different[:5])}"
            f"{'; ...' if len(different) > 5 else ''}. Put them back, or start a new run."
        )
    return Resumption(_as_scaled(config, checkpoint, overrides), checkpoint)


def rewind(resumption: Resumption) -> None:
    """Bring the run directory to the checkpoint's step: later metrics, samples and results will be made again."""
    config, step = resumption.config, resumption.checkpoint.step
    run_dir = config.run_dir
    settings = run_dir / ".config.yaml.tmp"
    settings.write_text(dump_config(config))
    settings.replace(run_dir / "config.yaml")  # first and whole: without it nothing of the run can be resumed
    if read_run_id(run_dir) is None:  # its folder was lost, but for what came from checkpoints.url
        write_run_id(run_dir, resumption.checkpoint.info.get("run"))
    CheckpointStore(run_dir, config.checkpoints).discard_after(step)
    for path in (run_dir / FILE_NAME, *sorted((run_dir / "samples").glob("rank-*.jsonl"))):
        keep_rows(path, last_step=step)
    for name in ("summary.json", "summary.md", "summary.csv", SIDES_FILE):
        (run_dir / name).unlink(missing_ok=True)
    for name in ("model", "ray_train"):
        shutil.rmtree(run_dir / name, ignore_errors=True)
    log.info("resuming %s at step %d of %d", config.run.name, step, config.learners.steps)


def keep_rows(path: Path, *, last_step: int) -> None:
    """Cut a file of JSON lines down to the rows of steps up to `last_step`; a torn last line goes too.

    CheckpointError when another line is no row; the file is then left as it is.
    """
    if not path.is_file():
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with path.open("rb") as old, temporary.open("wb") as new:
            for number, line in enumerate(old, start=1):
                if line.endswith(b"\n") and _step_of_row(line, where=f"{path}:{number}") <= last_step:
                    new.write(line)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _step_of_row(line: bytes, *, where: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{where} is no row with a step ({error!r}), so the run cannot be resumed; remove the line."
        ) from error


def _in_place(config: Config, run_dir: Path) -> Config:
    """A run may have been moved since."""
    folder = run_dir.resolve()
    section = RunConfig.model_validate({**config.run.model_dump(), "dir": folder.parent, "name": folder.name})
    return config.model_copy(update={"run": section})


def _as_scaled(config: Config, checkpoint: Checkpoint, overrides: Sequence[str]) -> Config:
    """With as many samplers, scorers and references as there were, but where `overrides` say how many."""
    scaled = {
        name: num
        for name, num in checkpoint.info.get("replicas", {}).items()
        if not any(override.partition("=")[0].strip() == f"{name}.num" for override in overrides)
    }
    sections = {name: getattr(config, name).model_copy(update={"num": num}) for name, num in scaled.items()}
    return config.model_copy(update=sections)


def _steps_of_summary(run_dir: Path) -> int | None:
    file = run_dir / "summary.json"
    return json.loads(file.read_text(encoding="utf-8"))["steps"] if file.is_file() else None


def _newest(config: Config, store: CheckpointStore) -> Checkpoint | None:
    """The newest intact one here, or among the copies where there is none here; None = there has been none at all."""
    try:
        found = store.newest_intact()
    except CheckpointError:
        fetched = _fetched(config, store)
        if fetched is None:
            raise
        return fetched
    return found or _fetched(config, store)


def _fetched(config: Config, store: CheckpointStore) -> Checkpoint | None:
    if config.checkpoints.url is None:
        return None
    remote, path = open_remote(config.checkpoints.url)
    place = f"{path.rstrip('/')}/{config.run.name}"
    own = read_run_id(config.run_dir)

    def refuse(copy: Checkpoint) -> str | None:
        if own is not None:
            return None if copy.info.get("run") == own else "another run of this name has written it"
        different = changes(copy.info["fingerprint"], config, harmless=HARMLESS_ON_RESUME)
        return f"it was made with other settings or inputs: {'; '.join(different[:5])}" if different else None

    return download_newest(remote, place, store, refuse=refuse, deadline_s=config.deadlines.upload_s)

"""The conductor's part of a checkpoint: the rollout's books, their groups, the samplers' snapshot; then the seal.

learner/*.safetensors   written by the learners (engines/training_state.py) before they report the step
rollout.json            loops/state.py
groups.jsonl.gz         every group that rollout.json refers to
snapshot.*              the samplers' weights, where they are neither the initial model nor the learner's
"""

import gzip
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from negalign_ray.config import Config
from negalign_ray.engines.checkpoints import Checkpoint, CheckpointStore
from negalign_ray.engines.uploads import Uploader, open_remote
from negalign_ray.errors import CheckpointError
from negalign_ray.loops.state import (
    RolloutState,
    groups_from_lines,
    groups_to_lines,
    state_from_json,
    state_to_json,
)
from negalign_ray.records import Group, Prompt
from negalign_ray.settings import Tree
from negalign_ray.settings.fingerprint import fingerprint
from negalign_ray.settings.run_id import read_run_id

log = logging.getLogger(__name__)

LEARNER = "learner"  # folder of the learners inside a checkpoint
ROLLOUT, GROUPS = "rollout.json", "groups.jsonl.gz"


def write_rollout(folder: Path, state: RolloutState, groups: Sequence[Group]) -> None:
    (folder / ROLLOUT).write_text(state_to_json(state), encoding="utf-8")
    with gzip.open(folder / GROUPS, "wt", compresslevel=1, encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in groups_to_lines(groups))


def read_rollout(folder: Path, prompts: Sequence[Prompt]) -> tuple[RolloutState, list[Group]]:
    """CheckpointError when a group's prompt is not among `prompts`."""
    state = state_from_json((folder / ROLLOUT).read_text(encoding="utf-8"))
    with gzip.open(folder / GROUPS, "rt", encoding="utf-8") as file:
        try:
            return state, groups_from_lines(file, {prompt.prompt_id: prompt for prompt in prompts})
        except KeyError as error:
            raise CheckpointError(
                f"{folder / GROUPS} has a group of prompt {error}, which data.path does not hold; the data has changed."
            ) from error


class Saver:
    """Everything here blocks, and runs in a thread of the conductor, one call at a time."""

    def __init__(self, config: Config, *, fetch: Callable[[Any], Any] = ray.get) -> None:
        """`fetch`: object references (one, or a list) -> what they refer to."""
        self._config, self._fetch = config, fetch
        self.store = CheckpointStore(config.run_dir, config.checkpoints)
        self._run_id = read_run_id(config.run_dir)
        self._uploader: Uploader | None = None
        self._fingerprint: Tree | None = None
        if config.checkpoints.url is not None:
            remote, path = open_remote(config.checkpoints.url)
            place = f"{path.rstrip('/')}/{config.run.name}"
            self._uploader = Uploader(remote, place, run_id=self._run_id, deadline_s=config.deadlines.upload_s)

    def save(
        self,
        state: RolloutState,
        groups: Sequence[Any],
        snapshot: Any,
        metrics: Mapping[str, float],
        replicas: Mapping[str, int] | None = None,
    ) -> Checkpoint:
        """Seal the checkpoint of `state.step`, whose learner files are there; `groups` and `snapshot` are references,
        `replicas` the numbers of actors that are no longer those of the settings.

        CheckpointError when it cannot be written.
        """
        try:
            folder = self.store.partial(state.step)
            write_rollout(folder, state, self._fetch(list(groups)))
            if snapshot is not None:
                self._fetch(snapshot).save(folder)
            in_use = self._uploader.busy_with if self._uploader else None
            metric = self._metric(state.step, metrics)
            info = {"run": self._run_id, "fingerprint": self._settings(), "replicas": dict(replicas or {})}
            checkpoint = self.store.commit(state.step, metric=metric, info=info, in_use=in_use)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint of step {state.step} could not be written: {error}; free some space, or set "
                "checkpoints.every=0 and resume from the one before."
            ) from error
        log.info("checkpoint of step %d: %s", checkpoint.step, checkpoint.path)
        if self._uploader is not None:
            self._uploader.upload(checkpoint, keep=self.store.checkpoints())
        return checkpoint

    def newest_before(self, step: int) -> Checkpoint | None:
        """The newest intact checkpoint of fewer than `step` steps, and none newer any more: a resumed run goes on from
        there. None = there is none, and all of them stay."""
        checkpoint = self.store.newest_before(step - 1)
        if checkpoint is not None:
            self.store.discard_after(checkpoint.step)
            self.forget_copies_after(checkpoint.step)
        return checkpoint

    def forget_copies_after(self, step: int) -> None:
        """In the background: what was copied of later steps is no part of this run any more."""
        if self._uploader is not None:
            self._uploader.discard_after(step)

    def finish(self) -> list[str]:
        """Wait for what is on its way; what went wrong with the copies, one line each."""
        if self._uploader is None:
            return []
        self._uploader.finish()
        return [str(error) for error in self._uploader.errors]

    def _metric(self, step: int, metrics: Mapping[str, float]) -> float | None:
        """What checkpoints.keep_best compares; None where it is missing or not finite, which is no best one."""
        best_by = self._config.checkpoints.keep_best
        value = None if best_by is None else metrics.get(best_by)
        if value is None or math.isfinite(value):
            return value
        log.warning("checkpoints.keep_best=%s is %s at step %d, which is not compared", best_by, value, step)
        return None

    def _settings(self) -> Tree:
        """Read once: the files that it digests include the model."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self._config)
        return self._fingerprint

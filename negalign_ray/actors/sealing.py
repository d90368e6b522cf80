"""Checkpoints as the conductor sees them: captured at the end of a step, sealed in a thread while the run goes on."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError

from negalign_ray.actors.processes import typed
from negalign_ray.actors.saving import Saver
from negalign_ray.config import Config
from negalign_ray.engines.checkpoints import Checkpoint
from negalign_ray.errors import CheckpointError, NegalignError, StallError
from negalign_ray.events import Event, EventKind, Record
from negalign_ray.loops.buffer import Handle
from negalign_ray.loops.rollout import Rollout
from negalign_ray.loops.state import RolloutState

log = logging.getLogger(__name__)


class Sealer:
    """Belongs to the conductor's event loop. What goes wrong with a checkpoint ends the run."""

    def __init__(self, config: Config, *, record: Record, fetch: Callable[[Any], Any] = ray.get) -> None:
        self._deadline_s = config.deadlines.checkpoint_s
        self._record = record
        self._saver = Saver(config, fetch=fetch)
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task] = set()
        self.back_to: Checkpoint | None = None  # what a guard had the learners go back to

    def begin(
        self, rollout: Rollout, step: int, *, metrics: Mapping[str, float], replicas: Mapping[str, int]
    ) -> asyncio.Task:
        """Seal the checkpoint of this very step; the learners have written their part."""
        state, handles = rollout.capture(step)
        task = asyncio.get_running_loop().create_task(self._save(rollout, state, handles, dict(metrics), replicas))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _save(
        self,
        rollout: Rollout,
        state: RolloutState,
        handles: list[Handle],
        metrics: Mapping[str, float],
        replicas: Mapping[str, int],
    ) -> None:
        has_snapshot = 0 < rollout.schedule.due(state.step) < state.step
        snapshot = rollout.weights if has_snapshot else None
        try:
            state = replace(state, fleet=await rollout.remembered())  # before it waits, while references move on
            async with self._lock:
                groups = [handle.ref for handle in handles]
                call = asyncio.to_thread(self._saver.save, state, groups, snapshot, metrics, replicas)
                checkpoint = await asyncio.wait_for(call, self._deadline_s)
            self._record(Event(EventKind.CHECKPOINT, f"{checkpoint.path.name} is sealed", step=state.step))
        except RayError as error:  # first: Ray's errors may be of another kind as well
            await rollout.fail(typed(error, role="conductor", rank=0))
        except TimeoutError:
            setting = f"deadlines.checkpoint_s={self._deadline_s:g} s"
            reason = f"the checkpoint of step {state.step} took longer than {setting}; raise it, or checkpoints.every"
            await rollout.fail(StallError(reason, role="conductor"))
        except NegalignError as error:
            await rollout.fail(error)
        except Exception as error:  # nobody awaits this task but at the end: the run would go on without checkpoints
            log.exception("the checkpoint of step %d failed", state.step)
            reason = f"the checkpoint of step {state.step} could not be written: {error!r}"
            await rollout.fail(CheckpointError(f"{reason}; resume from the one before, or set checkpoints.every=0."))

    async def go_back(self, first_step: int, reason: str) -> Checkpoint | None:
        """The newest checkpoint from before `first_step`, the same for all who ask; None = there is none."""
        async with self._lock:
            if self.back_to is None:
                self.back_to = await asyncio.to_thread(self._saver.newest_before, first_step)
                if self.back_to is None:
                    log.warning("no checkpoint is older than step %d; the model stays as it is", first_step)
                else:
                    self._record(Event(EventKind.ROLLBACK, f"back to {self.back_to.path.name}: {reason}"))
            return self.back_to

    def goes_on_from(self, step: int) -> None:
        """Of a resumed run."""
        self._saver.forget_copies_after(step)

    async def settle(self) -> None:
        """Until every checkpoint that was begun is sealed, or has failed."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def finish(self) -> list[str]:
        """Waits for copies that are on their way; what went wrong with them, one line each."""
        await self.settle()
        return await asyncio.to_thread(self._saver.finish)

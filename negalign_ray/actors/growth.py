"""An elastic group that started with fewer ranks than it wants starts anew when there is room for more.

    room for more ranks, all of learners.grow_after_s --> end after this step --> checkpoint --> a start with more ranks

What it costs is a start of every role, so it is not done for room that comes and goes, nor shortly before the end.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from ray.exceptions import RayError

from negalign_ray.actors.cluster import free_nodes, placements
from negalign_ray.actors.packing import Node, seat
from negalign_ray.actors.plan import Plan

log = logging.getLogger(__name__)
LOOK_EVERY_S = 2.0


class Growth:
    """Of one attempt; `wanted` ranks, of which `plan` has as many as there was room for when it started."""

    def __init__(
        self,
        plan: Plan,
        *,
        wanted: int,
        free: Callable[[], Sequence[Node]] = free_nodes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        learners = plan.config.learners
        self._rank = next(place for place in placements(plan) if place.role == "learner")
        self._num, self._wanted, self._patience_s = learners.num, wanted, learners.grow_after_s
        self._num_steps, self._free, self._clock = learners.steps, free, clock
        self._began: tuple[int, float] | None = None  # the first step that was seen, and when
        self._looked_s = -LOOK_EVERY_S
        self._room_since: float | None = None
        self._room = 0  # ranks that there has been room for ever since

    def look(self, step: int) -> int | None:
        """The number of ranks to start anew with, after `step` steps; None = go on as you are."""
        now = self._clock()
        if self._num >= self._wanted or self._patience_s is None or now - self._looked_s < LOOK_EVERY_S:
            return None
        self._looked_s = now
        self._began = self._began or (step, now)
        room = self._ranks_with_room()
        if room == self._num:
            self._room_since = None
            return None
        self._room = room if self._room_since is None else min(room, self._room)
        self._room_since = now if self._room_since is None else self._room_since
        has_lasted = now - self._room_since >= self._patience_s
        return self._room if has_lasted and self._left_s(step, now) > self._patience_s else None

    def _ranks_with_room(self) -> int:
        try:
            nodes = self._free()
        except RayError as error:  # a run that trains needs no answer to this
            log.warning("the nodes' free resources are not known: %s", error)
            return self._num
        for num in range(self._wanted, self._num, -1):
            if seat([replace(self._rank, num=num - self._num)], nodes).complete:
                return num
        return self._num

    def _left_s(self, step: int, now: float) -> float:
        """To the last step, at the pace of this attempt; 0 while that is unknown."""
        assert self._began is not None
        first_step, began_s = self._began
        return (now - began_s) / (step - first_step) * (self._num_steps - step) if step > first_step else 0.0

"""A run whose learner died goes on by itself: from its newest checkpoint, with as many ranks as there is room for.

    attempt --a learner, or its groups, lost--> newest intact checkpoint --> attempt, `learners.restarts` times at most
       +------room for more ranks (growth.py)--------------^

The whole run is brought back to the checkpoint, as `train --resume` does it: the policy, the conductor's books and the
samplers' weights belong together. Ray Train could restart the group alone, which would leave the others ahead of it.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from negalign_ray.actors.cluster import free_nodes, live_nodes, placements
from negalign_ray.actors.packing import Node, seat
from negalign_ray.actors.plan import Plan
from negalign_ray.actors.resume import find_checkpoint, rewind
from negalign_ray.errors import CheckpointError, ConfigError, DiedError, LostObjectError

log = logging.getLogger(__name__)
# Plan, checkpoint to go on from -> summary; None = start anew from the newest checkpoint.
Attempt = Callable[[Plan, Path | None], dict[str, Any] | None]


def with_restarts(
    plan: Plan, attempt: Attempt, *, resume_from: Path | None = None, is_unwanted: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """The summary of the attempt that came to an end; the error of the last one where none did, or where by then the
    run was to end anyway (`is_unwanted`)."""
    left = plan.config.learners.restarts
    while True:
        try:
            summary = attempt(plan, resume_from)
            if summary is not None:
                return summary
            if is_unwanted():  # while the learners ended for the new start
                raise KeyboardInterrupt
            resumption = find_checkpoint(plan.config.run_dir)
        except (DiedError, LostObjectError) as error:
            if (isinstance(error, DiedError) and error.role != "learner") or left == 0 or is_unwanted():
                raise
            try:
                resumption = find_checkpoint(plan.config.run_dir)
            except (CheckpointError, ConfigError) as reason:
                error.add_note(f"learners.restarts={plan.config.learners.restarts} has nothing to go on from: {reason}")
                raise error from None
            left -= 1
            log.warning("%s; going on from step %d, %d restart(s) left", error, resumption.checkpoint.step, left)
        rewind(resumption)
        plan, resume_from = replace(plan, config=resumption.config), resumption.checkpoint.path


def with_learners_that_fit(
    plan: Plan,
    live: Callable[[], Sequence[Node]] = live_nodes,
    free: Callable[[], Sequence[Node]] = free_nodes,
    *,
    pause: Callable[[float], None] = time.sleep,
) -> Plan:
    """As many ranks as have a place beside the other roles, from `learners.num` down to `learners.min_num`.

    What the cluster could hold (`live`) but others occupy (not in `free`) is waited for up to `deadlines.place_s`.
    Where not even the fewest fit, the check for room says why.
    """
    learners = plan.config.learners
    if learners.min_num is None:
        return plan
    most = _most(plan, live())
    waited_s = 0.0
    while (now := _most(plan, free())) < most and waited_s < plan.config.deadlines.place_s:
        pause(1.0)
        waited_s += 1.0
    if now < learners.num:
        log.warning("learners: %d of %d ranks, there is no room for more", now, learners.num)
    return _with_learners(plan, now)


def _most(plan: Plan, nodes: Sequence[Node]) -> int:
    learners = plan.config.learners
    assert learners.min_num is not None
    for num in range(learners.num, learners.min_num, -1):
        if seat(placements(_with_learners(plan, num)), nodes).complete:
            return num
    return learners.min_num


def _with_learners(plan: Plan, num: int) -> Plan:
    learners = plan.config.learners.model_copy(update={"num": num})
    return replace(plan, config=plan.config.model_copy(update={"learners": learners}))

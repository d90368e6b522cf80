"""When to have more samplers, and when fewer: decided from what each optimizer step measured. Pure; starts nothing.

    learners waited for batches for much of their time       -> one more
    they did not, samplers had caught up, and could spare one -> one less

Three things keep the number from swinging: means over `patience` steps decide; no decision comes within `cooldown`
steps of a change; and a sampler goes only where the rest could do its work and learners wait for less than a quarter of
what counts as starving, since with one of two samplers gone they wait at most twice as long.
"""

from collections import deque
from dataclasses import dataclass
from statistics import fmean

from negalign_ray.config import AutoscaleConfig


@dataclass(frozen=True, slots=True)
class Load:
    """What one optimizer step says about the samplers."""

    wait_frac: float  # share of the step that learners waited for its batch
    busy_frac: float  # share of the step that a sampler was busy, mean over samplers
    caught_up: bool  # at the end of the step all that the samplers were asked for was there


@dataclass(frozen=True, slots=True)
class Decision:
    num: int
    reason: str


class Autoscaler:
    def __init__(self, config: AutoscaleConfig) -> None:
        self._config = config
        self._window: deque[Load] = deque(maxlen=config.patience)
        self._num: int | None = None  # as seen last
        self._steps_to_wait = config.cooldown  # the first steps hold the learners' start

    def observe(self, load: Load, *, num: int) -> Decision | None:
        """After every step, with the number of samplers that serve; the number that there should be, if another."""
        config = self._config
        within = min(max(num, config.min), config.max)
        if within != num:
            self._rest()
            return Decision(within, f"samplers.autoscale keeps them from {config.min} to {config.max}")
        if self._num not in (None, num):  # one came or went
            self._rest()
        self._num = num
        if self._steps_to_wait > 0:
            self._steps_to_wait -= 1
            return None
        self._window.append(load)
        if len(self._window) < config.patience:
            return None
        decision = self._judge(num)
        if decision is not None:
            self._rest()
        return decision

    def _rest(self) -> None:
        self._window.clear()
        self._steps_to_wait = self._config.cooldown

    def _judge(self, num: int) -> Decision | None:
        config = self._config
        wait_frac = fmean(load.wait_frac for load in self._window)
        busy_frac = fmean(load.busy_frac for load in self._window)
        steps = f"over the last {config.patience} steps"
        if wait_frac > config.starving_frac and num < config.max:
            return Decision(num + 1, f"learners waited for batches for {wait_frac:.0%} of their time {steps}")
        if num <= config.min or wait_frac >= config.starving_frac / 4 or not all(w.caught_up for w in self._window):
            return None
        idle_frac = 1.0 - busy_frac * num / (num - 1)  # of the others, when one has gone
        if idle_frac <= config.spare_frac:
            return None
        reason = f"samplers were busy for {busy_frac:.0%} of their time {steps} and the buffer was full"
        return Decision(num - 1, reason)

"""How fast a run goes and who waits in it, from its newest rows of metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from negalign_ray.metrics import Row

PACE_STEPS = 10  # newest optimizer steps that rates are taken from
BUSY = {  # role -> seconds of a step in which its actors worked, added up over them
    "sampler": "sampler/busy_s",
    "scorer": "scorer/busy_s",
    "reference": "reference/busy_s",
    "guide": "guide/busy_s",
}


@dataclass(frozen=True, slots=True)
class Pace:
    """Means over the last PACE_STEPS steps; None before the second step, and where nothing is sampled."""

    groups_per_s: float | None = None
    sampled_tokens_per_s: float | None = None
    trained_tokens_per_s: float | None = None
    eta_s: float | None = None  # to the last step, evaluation left out


def pace_of(rows: Sequence[Row], *, groups_per_step: int, steps_left: int) -> Pace:
    """From the newest metrics rows, oldest first. The first one only says when the others began."""
    rows, seconds = _newest(rows)
    if seconds <= 0:
        return Pace()
    num_steps = len(rows)
    sampled = sum(_number(row, "sampler/tokens_per_s") * _number(row, "sampler/busy_s") for row in rows)
    trained = sum(_number(row, "learner/tokens") for row in rows)
    return Pace(
        groups_per_s=num_steps * groups_per_step / seconds,
        sampled_tokens_per_s=sampled / seconds if sampled else None,
        trained_tokens_per_s=trained / seconds,
        eta_s=seconds / num_steps * steps_left,
    )


def idle_fracs(rows: Sequence[Row], *, num_actors: Mapping[str, int]) -> dict[str, float]:
    """Role -> share of the last PACE_STEPS steps' time that its actors did not work; nothing before the second step.

    A learner is idle while it waits for its groups. `num_actors`: of each role; a role of none is left out. References
    are as idle as the busiest of them, whose seconds the metric has.
    """
    rows, seconds = _newest(rows)
    if seconds <= 0:
        return {}
    shared_by = {**num_actors, "reference": 1}
    busy_s = {role: sum(_number(row, key) for row in rows) / shared_by.get(role, 1) for role, key in BUSY.items()}
    busy_s["learner"] = seconds - sum(_number(row, "learner/pull_wait_s") for row in rows)
    return {role: min(1.0, max(0.0, 1.0 - busy_s[role] / seconds)) for role in num_actors if role in busy_s}


def _newest(rows: Sequence[Row]) -> tuple[Sequence[Row], float]:
    """The rows of the last steps, and the seconds that these took."""
    rows = rows[-PACE_STEPS - 1 :]
    if len(rows) < 2:
        return (), 0.0
    return rows[1:], _number(rows[-1], "time_s") - _number(rows[0], "time_s")


def _number(row: Row, key: str) -> float:
    return float(row.get(key) or 0.0)

"""Where the time of a run went: how each role's seconds divide, over the whole run and step by step.

The learners' step is cut without a rest: waiting for groups, computing, gathering weights, checkpoints, all else. The
other roles are busy or idle: their busy seconds against the seconds that their actors had, actors x time of all steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from negalign_ray.events import EventKind
from negalign_ray.metrics import Row
from negalign_ray.report.read import RunFiles

STEP = "learner/step_s"
PARTS = (  # of a learner's step: metric, label, tone
    ("learner/compute_s", "computing", "compute"),
    ("learner/gather_s", "gathering weights", "gather"),
    ("learner/checkpoint_s", "writing checkpoints", "checkpoint"),
    ("learner/pull_wait_s", "waiting for groups", "idle"),
)
REST = ("all else", "rest")


@dataclass(frozen=True)
class Part:
    label: str
    seconds: float
    percent: float  # of its bar
    tone: str


@dataclass(frozen=True)
class Bar:
    """One role's time, or the run's; the percents of `parts` add up to 100."""

    label: str
    note: str
    parts: tuple[Part, ...]


def bars(run: RunFiles) -> list[Bar]:
    """Of the whole run first; empty without a finished step."""
    steps_s = total(run.rows, STEP)
    if not steps_s:
        return []
    found = []
    wall_s = run.summary.get("wall_s")
    if wall_s and wall_s > steps_s:
        parts = (("training steps", steps_s, "compute"), ("start, evaluation, export", wall_s - steps_s, "rest"))
        found.append(_bar("Whole run", duration(wall_s), parts))
    found.append(_bar("Learners", _count(run, "learners"), _learner_parts(run.rows, steps_s)))
    for role, key in (("samplers", "sampler/busy_s"), ("scorers", "scorer/busy_s"), ("references", "reference/busy_s")):
        busy_s = total(run.rows, key)
        if busy_s:
            idle_s = max(0.0, _available_s(run, role) - busy_s)
            found.append(_bar(role.capitalize(), _count(run, role), (("busy", busy_s, role), ("idle", idle_s, "idle"))))
    return found


def _available_s(run: RunFiles, role: str) -> float:
    """Of all actors together, which come and go: they are counted step by step. Of references, of one alone: a wave
    waits for its busiest reference, and the metric is that one's."""
    if role == "references":
        return total(run.rows, STEP)
    counted, num = f"{role.removesuffix('s')}/num", run.setting(f"{role}.num", 1)
    return sum(float(row.get(STEP) or 0.0) * float(row.get(counted) or num) for row in run.rows)


def _learner_parts(rows: Sequence[Row], steps_s: float) -> tuple[tuple[str, float, str], ...]:
    parts = tuple((label, total(rows, key), tone) for key, label, tone in PARTS)
    rest_s = max(0.0, steps_s - sum(seconds for _, seconds, _ in parts))
    return *parts, (REST[0], rest_s, REST[1])


def total(rows: Sequence[Row], key: str) -> float:
    """Seconds over all steps; 0.0 where it was never measured."""
    return sum(float(row.get(key) or 0.0) for row in rows)


def step_parts(rows: Sequence[Row]) -> list[tuple[str, str, list[float]]]:
    """(label, tone, seconds in every step) of the learners' step, stacked from the bottom; [] without steps."""
    if not any(row.get(STEP) for row in rows):
        return []
    parts = [(label, tone, [float(row.get(key) or 0.0) for row in rows]) for key, label, tone in PARTS]
    named = [sum(values[index] for *_, values in parts) for index in range(len(rows))]
    rest = [max(0.0, float(row.get(STEP) or 0.0) - seconds) for row, seconds in zip(rows, named, strict=True)]
    return [part for part in (*parts, (*REST, rest)) if any(part[2])]


def _bar(label: str, note: str, parts: tuple[tuple[str, float, str], ...]) -> Bar:
    whole = sum(seconds for _, seconds, _ in parts) or 1.0
    shown = [Part(name, seconds, round(100 * seconds / whole, 2), tone) for name, seconds, tone in parts if seconds > 0]
    return Bar(label, note, tuple(shown))


def _count(run: RunFiles, role: str) -> str:
    num = run.setting(f"{role}.num", 1)
    actors = "1 actor" if num == 1 else f"{num} actors"
    return f"{actors} at the start" if any(event.kind == EventKind.SCALE for event in run.events) else actors


def duration(seconds: float) -> str:
    """42 -> "42 s", 200 -> "3 min 20 s", 7260 -> "2 h 1 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

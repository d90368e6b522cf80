"""Guards that fired, and what else happened to a run on its way (events.jsonl), placed on a line of time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from negalign_ray.events import Event, EventKind
from negalign_ray.report.read import RunFiles
from negalign_ray.report.times import duration
from negalign_ray.report.verdict import shown

LANES: dict[EventKind, tuple[str, str]] = {  # the lanes from top to bottom: label, tone
    EventKind.FAULT: ("faults", "worse"),
    EventKind.STALL: ("stalls", "worse"),
    EventKind.FAILED: ("failures of the run", "worse"),
    EventKind.REPLACE: ("replacements", "mixed"),
    EventKind.SCALE: ("scaling", "sample"),
    EventKind.GUARD: ("guards", "mixed"),
    EventKind.ROLLBACK: ("rollbacks", "worse"),
    EventKind.RESUME: ("resumes", "neutral"),
    EventKind.CHECKPOINT: ("checkpoints", "neutral"),
}
MAX_EVENTS = 400  # of one run; the rarer kinds are kept first


@dataclass(frozen=True)
class Happening:
    """One event as a line of the table; `at` is percent of the time line's width."""

    number: int
    kind: str
    tone: str
    at: float
    when: str  # "3 min 20 s"
    step: str
    where: str  # "sampler 2, version 6"
    reason: str


@dataclass(frozen=True)
class Timeline:
    """`lanes` are (label, tone, events); `ticks` are (percent, label)."""

    lanes: tuple[tuple[str, str, tuple[Happening, ...]], ...]
    ticks: tuple[tuple[float, str], ...]
    happenings: tuple[Happening, ...]
    num_left_out: int


@dataclass(frozen=True)
class GuardRow:
    guard: str
    metric: str
    steps: str
    value: str
    limit: str
    action: str
    reason: str


def timeline_of(run: RunFiles) -> Timeline | None:
    """None for a run without events."""
    events = _most_telling(run.events)
    if not events:
        return None
    last_row_s = float(run.rows[-1].get("time_s") or 0.0) if run.rows else 0.0
    whole_s = max(last_row_s, *(event.time_s for event in events), 1e-9)
    happenings = tuple(_happening(number, event, whole_s) for number, event in enumerate(events, start=1))
    lanes = (
        (label, tone, tuple(one for one in happenings if one.kind == kind)) for kind, (label, tone) in LANES.items()
    )
    ticks = tuple((25.0 * quarter, duration(whole_s * quarter / 4)) for quarter in range(5))
    return Timeline(tuple(lane for lane in lanes if lane[2]), ticks, happenings, len(run.events) - len(events))


def _most_telling(events: Sequence[Event]) -> list[Event]:
    """All, or the kinds that occurred least often before the others; in the order of time."""
    counts = {kind: sum(event.kind == kind for event in events) for kind in LANES}
    kept = sorted(range(len(events)), key=lambda index: (counts[events[index].kind], index))[:MAX_EVENTS]
    return [events[index] for index in sorted(kept)]


def _happening(number: int, event: Event, whole_s: float) -> Happening:
    where = [] if event.role is None else [event.role if event.rank is None else f"{event.role} {event.rank}"]
    where += [] if event.weight_version is None else [f"version {event.weight_version}"]
    return Happening(
        number=number,
        kind=str(event.kind),
        tone=LANES[event.kind][1],
        at=round(100 * event.time_s / whole_s, 2),
        when=duration(event.time_s),
        step="" if event.step is None else str(event.step),
        where=", ".join(where),
        reason=event.reason,
    )


def guard_rows(run: RunFiles) -> list[GuardRow]:
    """What summary.json says of the guards."""
    return [_guard_row(row) for row in run.summary.get("guards") or ()]


def _guard_row(row: dict[str, Any]) -> GuardRow:
    first, last = row["first_step"], row["step"]
    return GuardRow(
        guard=row["guard"],
        metric=row["metric"],
        steps=str(last) if first == last else f"{first} to {last}",
        value=shown(row["value"]),
        limit=shown(row["limit"]),
        action=row["action"],
        reason=row["reason"],
    )

"""A run at one moment, as `negalign-ray status` tells it: who does what, how much waits where, how fast it goes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from negalign_ray.config import Config
from negalign_ray.events import Event, EventKind
from negalign_ray.loops.pace import Pace, pace_of
from negalign_ray.loops.rollout import Rollout
from negalign_ray.loops.watchdog import Activity
from negalign_ray.metrics import Row

NUM_ERRORS = 5
ERRORS = (EventKind.FAULT, EventKind.GUARD, EventKind.STALL, EventKind.FAILED)


@dataclass(frozen=True, slots=True)
class RoleState:
    role: str
    rank: int
    doing: str
    for_s: float | None  # None = since the start
    weight_version: int | None
    works: bool = False  # others may be waiting for it
    busy_s: float = 0.0  # time at work since the run began


@dataclass(frozen=True, slots=True)
class Queues:
    """Groups. `capacity` is sampling.buffer_groups."""

    under_way: int  # ordered and not yet ready to train on
    ready: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Overview:
    run: str
    run_dir: str
    phase: str
    step: int  # optimizer steps done = version of the learners' weights
    num_steps: int
    sampler_version: int
    roles: tuple[RoleState, ...]
    queues: Queues
    pace: Pace
    errors: tuple[str, ...]  # the newest last

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Overview":
        return cls(
            **{
                **values,
                "roles": tuple(RoleState(**each) for each in values["roles"]),
                "queues": Queues(**values["queues"]),
                "pace": Pace(**values["pace"]),
                "errors": tuple(values["errors"]),
            }
        )


def make_overview(
    config: Config,
    *,
    phase: str,  # what the driver does
    is_stopping: bool,
    step: int,
    rollout: Rollout | None,  # None = the roles are not ready yet
    serving: Mapping[str, Sequence[int]],  # ranks of the roles that come and go, once they are there
    activities: Sequence[Activity],
    rows: Sequence[Row],  # of metrics, newest last
    events: Sequence[Event],
) -> Overview:
    """From what the conductor knows."""
    num_ready, num_buffered = (rollout.buffer.num_ready, len(rollout.buffer)) if rollout else (0, 0)
    learners = config.learners
    return Overview(
        run=config.run.name,
        run_dir=str(config.run_dir),
        phase="stopping" if is_stopping and phase == "training" else phase,
        step=step,
        num_steps=learners.steps,
        sampler_version=rollout.sampler_version if rollout else 0,
        roles=role_states(config, activities, is_ready=rollout is not None, serving=serving),
        queues=Queues(num_buffered - num_ready, num_ready, config.sampling.buffer_groups),
        pace=pace_of(rows, groups_per_step=learners.groups_per_step, steps_left=learners.steps - step),
        errors=error_lines(events),
    )


def role_states(
    config: Config,
    activities: Sequence[Activity],
    *,
    is_ready: bool,
    serving: Mapping[str, Sequence[int]] = MappingProxyType({}),
) -> tuple[RoleState, ...]:
    """What each role does; one that nobody has called yet waits for its first call, or is still starting."""
    known = {(each.role, each.rank): each for each in activities}
    configured = [("sampler", config.samplers.num), ("learner", config.learners.num)]
    if config.scorers.heads:
        configured.append(("scorer", config.scorers.num))
    expected = {(role, rank) for role, num in configured for rank in serving.get(role, range(num))}
    first = "idle" if is_ready else "starting"
    return tuple(
        RoleState(*key, each.doing, round(each.for_s, 1), each.weight_version, each.works, round(each.busy_s, 1))
        if (each := known.get(key))
        else RoleState(*key, first, None, None)
        for key in sorted(known.keys() | expected)
    )


def error_lines(events: Sequence[Event]) -> tuple[str, ...]:
    """ "2026-11-22T21:04:05.120+00:00 fault sampler[1]: the actor died ..." """
    bad = [event for event in events if event.kind in ERRORS][-NUM_ERRORS:]
    return tuple(f"{event.time} {event.kind}{_who(event)}: {' '.join(event.reason.split())[:300]}" for event in bad)


def _who(event: Event) -> str:
    return "" if event.role is None else f" {event.role}[{event.rank or 0}]"

"""What `top` shows, as plain values: a source makes them, the view draws them."""

from dataclasses import dataclass, field
from typing import Protocol

from negalign_ray.events import Event
from negalign_ray.live.curves import Curve
from negalign_ray.loops.guards import Reading
from negalign_ray.loops.pace import Pace


@dataclass(frozen=True, slots=True)
class RoleFacts:
    """One actor, or all those of a role where no more is known."""

    role: str
    rank: int | None  # None = all `num` of them
    doing: str = ""
    for_s: float | None = None  # None = not known
    weight_version: int | None = None
    idle_frac: float | None = None  # lately; None = not known
    num: int = 1
    works: bool = False


@dataclass(frozen=True, slots=True)
class QueueFacts:
    """Groups."""

    under_way: int
    ready: int
    capacity: int


@dataclass(frozen=True, slots=True)
class RunFacts:
    name: str
    method: str
    model: str
    phase: str
    is_over: bool
    step: int  # optimizer steps done
    num_steps: int
    time_s: float | None = None  # of the run so far
    roles: tuple[RoleFacts, ...] = ()
    queue: QueueFacts | None = None
    pace: Pace = field(default_factory=Pace)
    curves: tuple[Curve, ...] = ()
    guards: tuple[Reading, ...] = ()
    events: tuple[Event, ...] = ()  # oldest first
    note: str = ""  # about where these facts come from


class Source(Protocol):
    def look(self) -> RunFacts:
        """The run now. RunEndedError when nobody answers any more, because it is over."""

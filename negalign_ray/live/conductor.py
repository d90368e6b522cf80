"""The conductor of a run that goes on as a source of facts; the run directory need not be visible from here."""

import time
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from negalign_ray.live.facts import QueueFacts, RoleFacts, RunFacts
from negalign_ray.live.folder import ROLES
from negalign_ray.live.record import RunRecord
from negalign_ray.loops.pace import idle_fracs

if TYPE_CHECKING:
    from negalign_ray.actors.overview import Overview, RoleState

Actor = tuple[str, int]  # role, rank
WINDOW_S = 60.0  # that idle shares are taken over
LEAST_WINDOW_S = 2.0


class Run(Protocol):
    """As `attach` hands it out."""

    def status(self) -> "Overview": ...

    def call(self, method: str, *arguments: Any) -> Any: ...


class ConductorSource:
    def __init__(self, run: Run, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._run, self._now_s = run, now_s
        self._record = RunRecord(lambda name, offset: run.call("read_record", name, offset))
        self._busy = BusyWindow()
        self._newest = (0, 0.0)  # number of rows, when the last one came

    def look(self) -> RunFacts:
        overview, now_s = self._run.status(), self._now_s()
        self._record.refresh()
        if len(self._record.steps) != self._newest[0]:
            self._newest = len(self._record.steps), now_s
        self._busy.add(now_s, {(role.role, role.rank): role.busy_s for role in overview.roles})
        queues = overview.queues
        return self._record.facts(
            name=overview.run,
            phase=overview.phase,
            is_over=False,
            roles=self._roles(overview),
            queue=QueueFacts(queues.under_way, queues.ready, queues.capacity),
            since_s=now_s - self._newest[1],
        )

    def _roles(self, overview: "Overview") -> tuple[RoleFacts, ...]:
        of_role = idle_fracs(self._record.steps, num_actors=Counter(role.role for role in overview.roles))
        return tuple(
            RoleFacts(
                each.role,
                each.rank,
                doing=each.doing,
                for_s=each.for_s,
                weight_version=overview.step if each.role == "learner" else each.weight_version,
                idle_frac=self._busy.idle_frac((each.role, each.rank), otherwise=of_role.get(each.role)),
                works=each.works,
            )
            for each in sorted(overview.roles, key=_place)
        )


class BusyWindow:
    """What the last minute's looks at the conductor's book say of each actor."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, dict[Actor, float]]] = deque()

    def add(self, now_s: float, busy_s: dict[Actor, float]) -> None:
        """`busy_s`: since the run began."""
        self._looks.append((now_s, busy_s))
        while now_s - self._looks[0][0] > WINDOW_S:
            self._looks.popleft()

    def idle_frac(self, actor: Actor, *, otherwise: float | None) -> float | None:
        """`otherwise`: for an actor that has not been looked at for long enough."""
        (then_s, before), (now_s, now) = self._looks[0], self._looks[-1]
        if now_s - then_s < LEAST_WINDOW_S or actor not in before:
            return otherwise
        return min(1.0, max(0.0, 1.0 - (now[actor] - before[actor]) / (now_s - then_s)))


def _place(state: "RoleState") -> tuple[int, str, int]:
    """In the order in which groups pass the roles."""
    return ROLES.index(state.role) if state.role in ROLES else len(ROLES), state.role, state.rank

"""Whether a run still moves, and who holds it up when it does not.

    calls to roles, learners' words --> ActivityBook --moves--> Watchdog --none for stall_s--> suspects(activities)

The book is kept by whoever calls the roles, so that it needs no answer from one that hangs. Nothing here knows Ray.
"""

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

RoleKey = tuple[str, int]  # role, rank


@dataclass(frozen=True, slots=True)
class Activity:
    """What one role is doing."""

    role: str
    rank: int
    doing: str
    for_s: float
    works: bool  # others may be waiting for it; False: it is idle, or waits itself
    weight_version: int | None = None
    busy_s: float = 0.0  # how long it has worked since the run began, calls that overlap counted once

    @property
    def who(self) -> str:
        version = "" if self.weight_version is None else f" v{self.weight_version}"
        return f"{self.role}[{self.rank}]{version}"

    def __str__(self) -> str:
        return f"{self.who}: {self.doing} for {self.for_s:.0f} s"


@dataclass(frozen=True, slots=True)
class _Entry:
    doing: str
    since_s: float
    works: bool
    version: int | None = None


class ActivityBook:
    """Belongs to the conductor's event loop. `moves` grows with everything that happens to a role."""

    def __init__(self, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self.moves = 0
        self._now_s, self._numbers = now_s, itertools.count()
        self._states: dict[RoleKey, _Entry] = {}
        self._calls: dict[RoleKey, dict[int, _Entry]] = {}  # under way, by number: a scorer has several at once
        self._busy_s: defaultdict[RoleKey, float] = defaultdict(float)  # of work that is over
        self._works_since_s: dict[RoleKey, float] = {}

    @contextmanager
    def call(self, role: str, rank: int, doing: str, *, version: int | None = None) -> Iterator[None]:
        """Around a call to a role, which is idle when none is under way."""
        calls, number = self._calls.setdefault((role, rank), {}), next(self._numbers)
        calls[number] = _Entry(doing, self._now_s(), True, version)
        self._works_since_s.setdefault((role, rank), self._now_s())
        try:
            yield
        finally:
            del calls[number]
            if self._calls.get((role, rank)) is calls:  # else it has left meanwhile
                self._enter(role, rank, _Entry("idle", self._now_s(), False, version))

    def says(self, role: str, rank: int, doing: str, *, works: bool, version: int | None = None) -> None:
        """For a role that tells what it does now: a learner."""
        self._enter(role, rank, _Entry(doing, self._now_s(), works, version))

    def leave(self, role: str, rank: int) -> None:
        """It is gone, and nobody waits for it any more."""
        for entries in (self._states, self._calls, self._works_since_s):
            entries.pop((role, rank), None)
        self.moves += 1

    def activities(self) -> tuple[Activity, ...]:
        """Of every role, by its longest call; by name."""
        entries = self._states | {
            key: min(calls.values(), key=lambda call: call.since_s) for key, calls in self._calls.items() if calls
        }
        now_s = self._now_s()
        return tuple(
            Activity(
                *key,
                entry.doing,
                now_s - entry.since_s,
                entry.works,
                entry.version,
                busy_s=self._busy_s[key] + now_s - self._works_since_s.get(key, now_s),
            )
            for key, entry in sorted(entries.items())
        )

    def _enter(self, role: str, rank: int, entry: _Entry) -> None:
        key = role, rank
        self._states[key] = entry
        self.moves += 1
        if key in self._works_since_s and not self._calls.get(key):
            self._busy_s[key] += self._now_s() - self._works_since_s.pop(key)
        if entry.works:
            self._works_since_s.setdefault(key, self._now_s())


class Watchdog:
    """Notices that nothing has moved for `stall_s` seconds."""

    def __init__(self, *, stall_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._stall_s, self._now_s = stall_s, now_s
        self._moves: int | None = None
        self._since_s = now_s()

    def look(self, moves: int) -> float | None:
        """The seconds without a move when they are too many, else None."""
        if moves != self._moves:
            self._moves, self._since_s = moves, self._now_s()
        still_s = self._now_s() - self._since_s
        return still_s if still_s > self._stall_s else None


def suspects(activities: Sequence[Activity]) -> list[Activity]:
    """Who works, the longest at one thing first; nobody when it is the conductor's own fault."""
    return sorted((each for each in activities if each.works), key=lambda each: -each.for_s)

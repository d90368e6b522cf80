"""Brings a role to the number of actors that is wanted, in the background, while the others work.

    want(3) --> join 1, join 2, side by side --> 3 serve
    want(1) --> leave 2, leave 1: each is drained, then gone

What cannot be started is tried again later, after longer and longer pauses: a cluster may get its lost node back.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from itertools import count, islice
from typing import Protocol

from negalign_ray.events import Event, EventKind, Record

log = logging.getLogger(__name__)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 60.0, 960.0  # before what failed is tried again; doubled every time


class Team(Protocol):
    """Actors of one role that may become more or fewer while they work."""

    @property
    def ranks(self) -> Sequence[int]:
        """Of those that serve, ascending."""

    async def join(self, rank: int) -> None:
        """One more; it serves when this returns. Raises whatever keeps it from serving, and leaves nothing behind."""

    async def leave(self, rank: int) -> None:
        """It gets nothing new, ends what it is doing, and is gone when this returns."""


class Scaler:
    """Belongs to the conductor's event loop. Nothing that fails here ends the run."""

    def __init__(self, role: str, team: Team, *, record: Record) -> None:
        self.wanted = len(team.ranks)
        self._role, self._team, self._record = role, team, record
        self._task: asyncio.Task | None = None
        self._not_before_s, self._pause_s = 0.0, FIRST_PAUSE_S

    @property
    def ranks(self) -> Sequence[int]:
        """That serve now."""
        return self._team.ranks

    @property
    def num(self) -> int:
        """That serve now."""
        return len(self._team.ranks)

    @property
    def num_expected(self) -> int:
        """That serve when what is under way has come about."""
        return self.wanted if self._is_busy else self.num

    @property
    def _is_busy(self) -> bool:
        return self._task is not None and not self._task.done()

    def want(self, num: int, reason: str) -> None:
        """From now on; returns at once. What is being started or drained already is finished first."""
        text = f"{self._role}s: {self.num} -> {num} ({reason})"
        log.info("%s", text)
        self._record(Event(EventKind.SCALE, text, role=self._role))
        self.wanted = num
        self._not_before_s, self._pause_s = 0.0, FIRST_PAUSE_S
        self.settle()

    def settle(self) -> None:
        """Make up for what is missing, unless that is under way or has just failed; to be called now and then."""
        if self.num != self.wanted and not self._is_busy and time.monotonic() >= self._not_before_s:
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        while missing := self.wanted - self.num:
            ranks = self._team.ranks
            if missing > 0:
                moves = [self._join(rank) for rank in islice((n for n in count() if n not in ranks), missing)]
            else:
                moves = [self._leave(rank) for rank in ranks[missing:]]
            if not all(await asyncio.gather(*moves)):
                self._not_before_s = time.monotonic() + self._pause_s
                self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
                return
        self._pause_s = FIRST_PAUSE_S

    async def _join(self, rank: int) -> bool:
        started = time.monotonic()
        try:
            await self._team.join(rank)
        except Exception as error:  # of any kind: the others go on
            self._tell(rank, f"could not be started; next try in {self._pause_s:g} s: {error or repr(error)}")
            return False
        self._tell(rank, f"joined after {time.monotonic() - started:.1f} s; {self.num} serve")
        return True

    async def _leave(self, rank: int) -> bool:
        started = time.monotonic()
        try:
            await self._team.leave(rank)
        except Exception as error:
            self._tell(rank, f"did not leave as it should: {error or repr(error)}")
            return False
        self._tell(rank, f"left after {time.monotonic() - started:.1f} s; {self.num} serve")
        return True

    def _tell(self, rank: int, text: str) -> None:
        log.info("%s[%d] %s", self._role, rank, text)
        self._record(Event(EventKind.SCALE, text, role=self._role, rank=rank))

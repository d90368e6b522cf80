"""Actors of one role, each in a placement group of its own, that may become more or fewer while others call them."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import ray

from negalign_ray.actors.packing import Placement
from negalign_ray.actors.reservations import Reservations
from negalign_ray.errors import DiedError, RoleError
from negalign_ray.loops.watchdog import ActivityBook

ActorHandle = Any
Make = Callable[..., ActorHandle]  # rank, further options of the actor
Within = Callable[[str, Any, str, int], Awaitable[Any]]  # deadline by its setting, call, role, rank -> answer
LOOK_EVERY_S = 5.0  # at the node of an actor that takes long to start, or died at it
NUM_LOOKS = 5  # Ray takes a node for lost when it has missed five health checks, 3 s apart
Step = Callable[["Pool", int], Awaitable[None]]  # something done with the actor of that rank


class Pool:
    """The actors of `role` by rank. Those in `ranks` take calls; ranks need not be contiguous."""

    def __init__(
        self,
        name: str,
        place: Placement,
        make: Make,
        *,
        num: int,
        reservations: Reservations,
        book: ActivityBook,
        within: Within,
        kill: Callable[[ActorHandle], None] = ray.kill,
    ) -> None:
        self.name, self.role = name, place.role  # two pools of references have a name each
        self.confirm: Callable[[int, Any], None] = lambda rank, answer: None  # looks at a first answer, may refuse it
        self.actors: dict[int, ActorHandle] = {}
        self.ranks: tuple[int, ...] = tuple(range(num))
        self._place, self._make, self._reservations = replace(place, num=1), make, reservations
        self._book, self._within, self._kill = book, within, kill
        self._num_calls: Counter[int] = Counter()  # under way
        self._drained: dict[int, asyncio.Event] = {}
        self._locks: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._turn = 0

    def seat(self, rank: int) -> str:
        return f"{self.name}-{rank}"

    def bundles(self, ranks: Sequence[int]) -> dict[str, Placement]:
        return {self.seat(rank): self._place for rank in ranks}

    def start(self, rank: int) -> Any:
        """A new actor, in place of an earlier one if there is one; the reference of its first answer."""
        if rank in self.actors:
            self._kill(self.actors[rank])
        self.actors[rank] = self._make(rank, **self._reservations.options(self.seat(rank)))
        return self.actors[rank].ready.remote()

    def end(self, rank: int) -> None:
        """Whatever it is doing; also one that never came up."""
        actor = self.actors.pop(rank, None)
        if actor is not None:
            self._kill(actor)
            self._book.leave(self.role, rank)
        self._reservations.give_back(self.seat(rank))

    def end_all(self) -> None:
        for rank in list(self.actors):
            self.end(rank)

    # -- starting while others work ----------------------------------------------------------------------------

    async def bring_up(self, rank: int) -> None:
        """One more actor, once there is room for it: PlacementError. Those who ask do not meet it yet."""
        await asyncio.to_thread(self._reservations.take, self.bundles([rank]))
        await self.come_up(rank)

    async def come_up(self, rank: int) -> None:
        """A new actor of that rank, until it is ready. Where its node goes down meanwhile, it starts elsewhere."""
        while True:
            await asyncio.to_thread(self._reservations.renew, self.seat(rank))
            nodes = await self._nodes(rank)
            try:
                answer = await self._first_answer(rank, nodes)
            except RoleError as error:
                if await self._stays(rank, nodes, looks=NUM_LOOKS if isinstance(error, DiedError) else 1):
                    raise
                continue
            self.confirm(rank, answer)
            return

    async def _nodes(self, rank: int) -> frozenset[str] | None:
        return await asyncio.to_thread(self._reservations.nodes, self.seat(rank))

    async def _stays(self, rank: int, nodes: frozenset[str] | None, *, looks: int) -> bool:
        """Whether its place is where it was. A death may be known long before that of the node which it comes from."""
        for look in range(looks):
            if look:
                await asyncio.sleep(LOOK_EVERY_S)
            if nodes is None or await self._nodes(rank) != nodes:
                return False
        return True

    async def _first_answer(self, rank: int, nodes: frozenset[str] | None) -> Any:
        answer = asyncio.ensure_future(self._within("start_s", self.start(rank), self.role, rank))
        try:
            while not (await asyncio.wait({answer}, timeout=LOOK_EVERY_S))[0]:
                if not await self._stays(rank, nodes, looks=1):
                    raise RoleError("its node went down while it started", role=self.role, rank=rank)
            return await answer
        finally:
            answer.cancel()

    # -- who takes a call --------------------------------------------------------------------------------------

    @asynccontextmanager
    async def use(self, rank: int | None = None) -> AsyncIterator[int]:
        """A rank that stays until this ends: the one asked for, another where it has left; None = the next in turn.

        One that is being replaced is waited for: a new actor may lack what it needs to answer until that is over.
        """
        rank = self._pick(rank)
        while self._locks[rank].locked():
            async with self._locks[rank]:
                pass
            rank = self._pick(rank)
        self._num_calls[rank] += 1
        try:
            yield rank
        finally:
            self._num_calls[rank] -= 1
            if rank in self._drained and not self._num_calls[rank]:
                self._drained[rank].set()

    def _pick(self, rank: int | None) -> int:
        if rank is None:
            rank, self._turn = self.ranks[self._turn % len(self.ranks)], self._turn + 1
        return rank if rank in self.ranks else self.ranks[rank % len(self.ranks)]

    def repair(self, rank: int) -> asyncio.Lock:
        """Held by the one who replaces an actor, so that nobody replaces its successor."""
        return self._locks[rank]

    # -- more and fewer ----------------------------------------------------------------------------------------

    def admit(self, rank: int) -> None:
        self.ranks = tuple(sorted((*self.ranks, rank)))

    def expel(self, rank: int) -> None:
        """At once: it is of no use any more."""
        self.ranks = tuple(each for each in self.ranks if each != rank)
        self.end(rank)

    async def leave(self, rank: int) -> None:
        """The calls under way are finished; new ones go to others."""
        self.ranks = tuple(each for each in self.ranks if each != rank)
        assert self.ranks, "the last one stays"
        if self._num_calls[rank]:
            self._drained[rank] = asyncio.Event()
            await self._drained[rank].wait()  # every call has a deadline
            del self._drained[rank]
        self.end(rank)


class PoolTeam:
    """Pools that grow and shrink together: the scorers, or all references."""

    def __init__(self, pools: Sequence[Pool], *, catch_up: Step, updating: asyncio.Lock) -> None:
        """`catch_up` makes a new actor like the others while nobody changes them: `updating` is held meanwhile."""
        self._pools, self._catch_up, self._updating = pools, catch_up, updating

    @property
    def ranks(self) -> Sequence[int]:
        """That serve in every pool; one that was lost in some of them is missing."""
        return tuple(rank for rank in self._pools[0].ranks if not self._without(rank)) if self._pools else ()

    def _without(self, rank: int) -> list[Pool]:
        return [pool for pool in self._pools if rank not in pool.ranks]

    async def join(self, rank: int) -> None:
        missing = self._without(rank)
        try:
            for pool in missing:
                await pool.bring_up(rank)
            async with self._updating:
                for pool in missing:
                    await self._catch_up(pool, rank)
                for pool in missing:
                    pool.admit(rank)
        except BaseException:
            for pool in missing:
                pool.end(rank)
            raise

    async def leave(self, rank: int) -> None:
        await asyncio.gather(*(pool.leave(rank) for pool in self._pools))

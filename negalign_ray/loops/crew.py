"""The samplers of a run: who takes orders, one thing at a time each, which weights they hold, who comes and who goes.

    join --> starts, loads the weights that the others hold, confirms --> SERVES --> leave --> its call ends --> gone
                                                                         ^  |
                                                     a new actor --------+--+ fails

A failed sampler is replaced before anybody else may ask it. Where there is no room for a new one, the others go on
without it; only the last one takes the run with it. Ranks need not be contiguous.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

from negalign_ray.errors import LostObjectError, NegalignError, RoleError
from negalign_ray.events import Event, EventKind, Record, forget
from negalign_ray.loops.roles import Fleet, Offer

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Held:
    """What every sampler that serves has confirmed."""

    weights: Any = None  # None = the initial model
    version: int = 0


@dataclass(slots=True, eq=False)
class _Member:
    rank: int
    held: Held  # given to it last; new weights reach one member before all have them
    serving: bool = True
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # of the actor: one call at a time


class Crew:
    """Belongs to the conductor's event loop."""

    def __init__(self, fleet: Fleet, *, counts: Counter[str], record: Record = forget) -> None:
        self._fleet, self._counts, self._record = fleet, counts, record
        self.held = Held()
        self._members = {rank: _Member(rank, self.held) for rank in range(fleet.num_samplers)}
        self._asleep = False  # from `rest` until new weights come: learners need the memory
        self.updating = asyncio.Lock()  # held by whoever changes `held`: nobody joins in between

    @property
    def ranks(self) -> tuple[int, ...]:
        """Of those that take orders."""
        return tuple(sorted(self._members))

    async def ask(self, rank: int, call: Callable[[int], Awaitable[Answer]]) -> Answer:
        """What sampler `rank` answers, or another where there is none of that rank (any more).

        RoleError when it fails; by then there is a new actor in its place, or it is no longer of the crew. The actor
        stays when what it was to read is gone: LostObjectError.
        """
        while True:
            member = self._member(rank)
            async with member.lock:
                if not member.serving:  # it left while this call waited for its turn
                    continue
                try:
                    return await call(member.rank)
                except LostObjectError:  # no fault of the sampler's
                    raise
                except RoleError as error:
                    await self._replace(member, error, member.held)
                    raise

    async def spread(
        self, items: Sequence[Item], call: Callable[[int, Sequence[Item]], Awaitable[Sequence[Answer]]]
    ) -> list[Answer]:
        """One answer for each item, in order: each sampler gets a contiguous, near-equal part of them, and what one
        failed at is asked once more."""

        async def answer(rank: int, part: Sequence[Item]) -> Sequence[Answer]:
            try:
                return await self.ask(rank, lambda rank: call(rank, part))
            except RoleError as error:
                log.warning("%s; asking again", error)
                return await self.ask(rank, lambda rank: call(rank, part))

        ranks = self.ranks
        size = max(1, -(-len(items) // len(ranks)))
        parts = [items[start : start + size] for start in range(0, len(items), size)]
        answers = await asyncio.gather(*(answer(*each) for each in zip(ranks, parts, strict=False)))
        return [each for part in answers for each in part]

    async def load(self, held: Held, offer: Offer | None = None) -> float:
        """Give new weights to all that serve; the seconds of the slowest. The caller holds `updating`.

        They come from the object store, or as `offer` says. A sampler that fails gets them from the object store.
        """
        self._asleep = False
        if offer is not None and offer.together:
            return await self._load_together(held, offer)
        return max(await asyncio.gather(*(self._load(member, held, offer) for member in self._members.values())))

    async def keep(self, copy: Callable[[Any], Awaitable[Any]]) -> None:
        """Hold a copy of the weights from now on, because those that were published are about to go with their owner.

        Whoever is being replaced at the old ones has read them when this returns.
        """
        async with self.updating:
            if self.held.weights is None:
                return
            self.held = Held(await copy(self.held.weights), self.held.version)
            for member in list(self._members.values()):
                async with member.lock:
                    member.held = self.held

    async def rest(self) -> None:
        """All that serve sleep until they get new weights, and so does whoever joins meanwhile."""
        self._asleep = True
        await asyncio.gather(*(self._rest(member) for member in self._members.values()))

    # -- coming and going --------------------------------------------------------------------------------------

    async def join(self, rank: int) -> None:
        """Start sampler `rank`. It gets orders once it has confirmed the weights that the others hold."""
        try:
            await self._fleet.add_sampler(rank)
            held = self.held
            await self._give(rank, held)  # while nobody has to wait for it
            async with self.updating:
                if self.held is not held:
                    await self._give(rank, self.held)
                if self._asleep:
                    await self._fleet.sleep(rank)
                self._members[rank] = _Member(rank, self.held)
        except BaseException:
            await self._fleet.remove_sampler(rank)
            raise

    async def leave(self, rank: int) -> None:
        """The call under way is finished; those that wait for their turn go to other samplers."""
        member = self._members.pop(rank)
        assert self._members, "the last sampler stays"
        member.serving = False
        async with member.lock:
            await self._fleet.remove_sampler(rank)

    # -- one of them -------------------------------------------------------------------------------------------

    def _member(self, rank: int) -> _Member:
        ranks = self.ranks
        return self._members[rank if rank in self._members else ranks[rank % len(ranks)]]

    async def _load_together(self, held: Held, offer: Offer) -> float:
        async with AsyncExitStack() as until_done:
            for member in list(self._members.values()):
                await until_done.enter_async_context(member.lock)
            members = list(self._members.values())  # without those that left meanwhile; nobody joins
            self._fleet.meet([member.rank for member in members], offer)
            return max(await asyncio.gather(*(self._load_locked(member, held, offer) for member in members)))

    async def _load(self, member: _Member, held: Held, offer: Offer | None) -> float:
        async with member.lock:
            return await self._load_locked(member, held, offer) if member.serving else 0.0

    async def _load_locked(self, member: _Member, held: Held, offer: Offer | None) -> float:
        rank, member.held = member.rank, held
        try:
            if offer is None:
                return (await self._fleet.load_weights(rank, held.weights, held.version)).seconds
            return (await self._fleet.receive_weights(rank, offer, held.weights, held.version)).seconds
        except RoleError as error:
            await self._replace(member, error, held)
            return 0.0

    async def _rest(self, member: _Member) -> None:
        async with member.lock:
            if not member.serving:
                return
            try:
                await self._fleet.sleep(member.rank)
                return
            except RoleError as error:
                await self._replace(member, error, member.held)
            if member.serving:  # a new actor, which is awake; where it cannot sleep either, learners have no room
                await self._fleet.sleep(member.rank)

    async def _give(self, rank: int, held: Held) -> None:
        if held.weights is not None:
            await self._fleet.load_weights(rank, held.weights, held.version)

    async def _replace(self, member: _Member, error: RoleError, held: Held) -> None:
        """The caller has the member's lock, so that nobody meets the failed actor meanwhile."""
        rank = member.rank
        self._record(Event(EventKind.FAULT, error.reason, role="sampler", rank=rank))
        if not member.serving:
            return
        log.warning("%s; replacing it", error)
        self._counts["samplers_replaced"] += 1
        try:
            await self._fleet.replace_sampler(rank, held.weights, held.version)
        except NegalignError as failure:
            if self.ranks == (rank,):
                raise
            await self._give_up(member, failure)
            return
        reason = f"a new actor has version {held.version}"
        self._record(Event(EventKind.REPLACE, reason, role="sampler", rank=rank, weight_version=held.version))

    async def _give_up(self, member: _Member, failure: NegalignError) -> None:
        member.serving = False
        del self._members[member.rank]
        reason = gone_without(len(self._members), failure)
        log.warning("sampler[%d]: %s", member.rank, reason)
        self._record(Event(EventKind.SCALE, reason, role="sampler", rank=member.rank))
        await self._fleet.remove_sampler(member.rank)


def gone_without(num_left: int, failure: NegalignError) -> str:
    return f"it cannot be replaced, {num_left} go on without it: {failure}"

"""Samplers, scorers and references as Ray actors: the rollout loop's Fleet.

Payloads pass from actor to actor by object reference. Each call returns a small head (cards, seconds, tokens), which
the conductor reads, and one object per group, which it does not.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ray

from negalign_ray.actors.cluster import placements
from negalign_ray.actors.locate import namespace_of
from negalign_ray.actors.meetings import Meetings
from negalign_ray.actors.packing import Placement
from negalign_ray.actors.plan import Plan
from negalign_ray.actors.pools import Make, Pool, PoolTeam
from negalign_ray.actors.processes import wait_until_ready, within
from negalign_ray.actors.reservations import Reservations, prefix_of
from negalign_ray.actors.starting import SameStart, make_guide, make_reference, make_sampler, make_scorer
from negalign_ray.errors import LostObjectError, NegalignError, NonFiniteError, RoleError, ScoreError
from negalign_ray.evaluation.training_notes import control_warning
from negalign_ray.events import Event, EventKind, Record, forget
from negalign_ray.loops.buffer import Handle
from negalign_ray.loops.crew import gone_without
from negalign_ray.loops.prices import Remembered, price_by_prompt
from negalign_ray.loops.roles import StageResult
from negalign_ray.loops.watchdog import ActivityBook
from negalign_ray.records import Generation, Group, Order, SampleRequest, SamplingSpec, WeightReceipt

log = logging.getLogger(__name__)
ActorHandle = Any


class RayFleet:
    def __init__(self, plan: Plan, *, record: Record = forget) -> None:
        """Starts nothing: `reserve` takes the places, `wait_until_ready` fills them."""
        config = plan.config
        self._config, self._deadlines, self._record = config, config.deadlines, record
        self.book = ActivityBook()
        self._reservations = Reservations(prefix_of(config.run.name), patience_s=config.deadlines.place_s)
        self._places = {place.role: place for place in placements(plan)}
        self._samplers = self._pool("sampler", partial(make_sampler, plan), config.samplers.num)
        self._samplers.confirm = SameStart().confirm
        self.meetings = Meetings(workers_per_sampler=config.samplers.tensor_parallel_size)
        self._scorers = self._pool("scorer", partial(make_scorer, plan), config.scorers.num)
        self._references = [
            self._pool("reference", partial(make_reference, plan, names), config.references.num, name=names[0])
            for names in plan.reference_pools
        ]
        self._guides = self._pool("guide", partial(make_guide, plan), 1)
        self._snapshot: tuple[Any, int] | None = None  # weights and version that the references follow; None = initial
        self._following = asyncio.Lock()
        self.num_samplers = config.samplers.num
        self._versions: dict[int, int] = {}  # of samplers
        self.teams = {
            "scorers": self._team([self._scorers] if self._scorers.ranks else []),
            "references": self._team(self._references),
        }

    def _pool(self, role: str, make: Make, num: int, *, name: str = "") -> Pool:
        """Empty for a role that the plan has no place for."""
        nobody = Placement(role, 0, cpus=0.0, gpus=0.0, threads=1)
        place, name = self._places.get(role, nobody), f"{role}-{name}" if name else role
        return Pool(
            name,
            place,
            partial(make, namespace=namespace_of(self._config.run.name)),
            num=num if place.num else 0,
            reservations=self._reservations,
            book=self.book,
            within=self._within,
        )

    def _team(self, pools: Sequence[Pool]) -> PoolTeam:
        return PoolTeam(pools, catch_up=self._catch_up, updating=self._following)

    @property
    def sizes(self) -> dict[str, int]:
        """Metrics: how many scorers and references serve; nothing of a role that the run has not."""
        sizes = {"scorer/num": len(self.teams["scorers"].ranks), "reference/num": len(self.teams["references"].ranks)}
        return {key: num for key, num in sizes.items() if num}

    @property
    def _pools(self) -> list[Pool]:
        return [self._samplers, self._scorers, self._guides, *self._references]

    def reserve(self) -> None:
        """Blocks. PlacementError when not all roles of the run have a place, others' too."""
        bundles = {seat: place for pool in self._pools for seat, place in pool.bundles(pool.ranks).items()}
        pooled = {pool.role for pool in self._pools}
        others = {role: place for role, place in self._places.items() if role not in pooled}
        self._reservations.take(bundles | others)

    def wait_until_ready(self) -> None:
        """Blocks. Everybody is started, and has answered."""
        calls = {pool.seat(rank): pool.start(rank) for pool in self._pools for rank in pool.ranks}
        answers = dict(zip(calls, wait_until_ready(calls, deadline_s=self._deadlines.start_s), strict=True))
        for pool in self._pools:
            for rank in pool.ranks:
                pool.confirm(rank, answers[pool.seat(rank)])

    def make_room_for(self, role: str) -> None:
        """Room was held for those whom somebody else starts: learners, who get a group of Ray Train's own."""
        self._reservations.give_back(role)

    def kill(self) -> None:
        for pool in self._pools:
            pool.end_all()
        self._reservations.give_back_all()

    # -- Fleet -------------------------------------------------------------------------------------------------

    async def sample(self, rank: int, orders: Sequence[Order]) -> StageResult:
        earlier: list[Any] = []  # where there are any
        if any(order.earlier for order in orders):
            # As arguments of their own they arrive by value: this process stays the one owner of every group.
            earlier = [order.earlier.ref if order.earlier else None for order in orders]
            orders = [replace(order, earlier=None) for order in orders]
        call = self._samplers.actors[rank].sample.options(num_returns=len(orders) + 1)
        head, *groups = call.remote(orders, *earlier)
        return _as_result(await self._within("sample_s", head, "sampler", rank), groups)

    async def hold(self, groups: Sequence[Group]) -> StageResult:
        return StageResult(tuple(Handle(ray.put(group), group.card()) for group in groups), busy_s=0.0)

    async def score(self, handles: Sequence[Handle]) -> StageResult:
        """A scorer that fails twice is no reason to end the run: the groups are dropped and counted."""
        try:
            return await self._completed(self._scorers, handles, method="score", setting="score_s")
        except (ScoreError, LostObjectError):
            raise
        except RoleError as error:
            raise ScoreError(error.reason, role="scorer", rank=error.rank) from error

    async def price(self, handles: Sequence[Handle]) -> StageResult:
        """Each pool fills in its own references; with two models the groups pass through both."""
        total = StageResult(tuple(handles), busy_s=0.0)
        for pool in self._references:
            ranks = pool.ranks
            ask = partial(self._price, pool, ranks)
            total = (await price_by_prompt(total.handles, num_ranks=len(ranks), ask=ask)).behind(total)
        return total

    async def _price(self, pool: Pool, ranks: Sequence[int], number: int, handles: Sequence[Handle]) -> StageResult:
        version = 0 if self._snapshot is None else self._snapshot[1]
        return await self._completed(
            pool, handles, rank=ranks[number], method="price", setting="reference_s", version=version
        )

    async def guide(self, handles: Sequence[Handle]) -> StageResult:
        result = await self._completed(self._guides, handles, method="guide", setting="guide_s")
        warning = control_warning(result.figures)
        if warning is not None:
            log.warning("%s", warning)
        return result

    async def _completed(
        self,
        pool: Pool,
        handles: Sequence[Handle],
        *,
        method: str,
        setting: str,
        rank: int | None = None,
        **arguments: Any,
    ) -> StageResult:
        """The groups with what one actor of the pool (`rank`, or the next in turn) adds to them.

        One that died or stalled is replaced and its successor asked once more; a head that gave up is not asked again,
        because it retries by itself, and neither is a fit that diverged or groups that are gone: that would not change.
        """
        for attempt in range(2):
            async with pool.use(rank) as rank:
                actor = pool.actors[rank]
                call = getattr(actor, method).options(num_returns=len(handles) + 1)
                head, *groups = call.remote(*(handle.ref for handle in handles), **arguments)
                try:
                    return _as_result(await self._within(setting, head, pool.role, rank), groups)
                except (ScoreError, NonFiniteError, LostObjectError):
                    raise
                except RoleError as error:
                    log.warning("%s; replacing it%s", error, "" if attempt else " and asking again")
                    await self._replace(pool, rank, actor, error)
                    if attempt:
                        raise
        raise AssertionError("unreachable")

    async def follow(self, weights: Any, version: int) -> float:
        async with self._following:
            self._snapshot = (weights, version)
            ranks = [(pool, rank) for pool in self._references for rank in pool.ranks]
            return max(await asyncio.gather(*(self._follow(pool, rank) for pool, rank in ranks)), default=0.0)

    async def _follow(self, pool: Pool, rank: int) -> float:
        async with pool.use(rank) as rank:
            actor = pool.actors[rank]
            try:
                return await self._give_snapshot(pool, rank)
            except RoleError as error:
                log.warning("%s; replacing it", error)
                await self._replace(pool, rank, actor, error)
                return 0.0

    async def _give_snapshot(self, pool: Pool, rank: int) -> float:
        assert self._snapshot is not None
        call = pool.actors[rank].load_weights.remote(self._snapshot[0])
        return (await self._within("weights_s", call, "reference", rank)).seconds

    async def load_weights(self, rank: int, weights: Any, version: int) -> WeightReceipt:
        call = self._samplers.actors[rank].load_weights.remote(weights)
        receipt = await self._within("weights_s", call, "sampler", rank)
        self._versions[rank] = version
        return receipt

    async def receive_weights(self, rank: int, offer: Any, weights: Any, version: int) -> WeightReceipt:
        """`offer`: of the learner (engines/weight_transfer.py)."""
        parcel = self.meetings.parcel(rank, offer)
        call = self._samplers.actors[rank].receive_weights.remote(parcel, [weights])
        try:
            receipt = await self._within("weights_s", call, "sampler", rank)
        except RoleError:
            self.meetings.failed()
            raise
        self._versions[rank] = version
        return receipt

    def meet(self, ranks: Sequence[int], offer: Any) -> None:
        self.meetings.call({rank: self._samplers.actors[rank] for rank in ranks}, offer)

    async def sleep(self, rank: int) -> None:
        await self._within("weights_s", self._samplers.actors[rank].sleep.remote(), "sampler", rank)

    async def replace_sampler(self, rank: int, weights: Any, version: int) -> None:
        self._versions[rank] = 0
        await self._samplers.come_up(rank)
        if weights is not None:
            await self.load_weights(rank, weights, version)

    async def add_sampler(self, rank: int) -> None:
        self._versions[rank] = 0
        await self._samplers.bring_up(rank)

    async def remove_sampler(self, rank: int) -> None:
        self._samplers.end(rank)

    # -- actors that come and go -------------------------------------------------------------------------------

    async def _catch_up(self, pool: Pool, rank: int) -> None:
        """References that follow hold the snapshot, and confirm it, before they price anything."""
        if pool.role == "reference" and self._snapshot is not None:
            await self._give_snapshot(pool, rank)

    async def _replace(self, pool: Pool, rank: int, actor: ActorHandle, error: RoleError) -> None:
        """A new actor in the place of a failed one, unless another caller met the same failure first. Where it cannot
        come up, the others go on alone; only the last one takes the run with it."""
        async with pool.repair(rank):
            if pool.actors.get(rank) is not actor:
                return
            self._record(Event(EventKind.FAULT, error.reason, role=pool.role, rank=rank))
            try:
                await pool.come_up(rank)
                await self._catch_up(pool, rank)
            except NegalignError as failure:
                if pool.ranks == (rank,):
                    raise
                pool.expel(rank)
                self._record(Event(EventKind.SCALE, gone_without(len(pool.ranks), failure), role=pool.role, rank=rank))
                return
            self._record(Event(EventKind.REPLACE, "a new actor is there", role=pool.role, rank=rank))

    # -- checkpoints -------------------------------------------------------------------------------------------

    async def remembered(self) -> dict[str, Any]:
        """The prices of every reference and the version that made them, pool by pool and rank by rank."""
        return {
            "references": [
                await asyncio.gather(*(self._prices(pool, rank) for rank in pool.ranks)) for pool in self._references
            ]
        }

    async def _prices(self, pool: Pool, rank: int) -> Remembered:
        async with pool.use(rank) as rank:
            try:
                return await self._within("reference_s", pool.actors[rank].prices.remote(), "reference", rank)
            except RoleError as error:  # the next call for prices replaces it; a checkpoint is no reason to end the run
                log.warning("%s; a run resumed from this checkpoint computes its prices again", error)
                return None, {}

    async def remember(self, state: Mapping[str, Any]) -> None:
        """With another number of references a prompt may have moved to another one, so that each gets all prices."""
        for pool, kept in zip(self._references, state.get("references", []), strict=False):
            each = [[part] for part in kept] if len(kept) == len(pool.ranks) else [kept] * len(pool.ranks)
            await asyncio.gather(
                *(
                    self._within("reference_s", pool.actors[rank].remember.remote(parts), "reference", rank)
                    for rank, parts in zip(pool.ranks, each, strict=True)
                )
            )

    # -- evaluation --------------------------------------------------------------------------------------------

    async def generate(self, rank: int, requests: Sequence[SampleRequest], spec: SamplingSpec) -> list[Generation]:
        call = self._samplers.actors[rank].generate.remote(requests, spec)
        return await self._within("sample_s", call, "sampler", rank)

    async def _within(self, setting: str, call: Any, role: str, rank: int) -> Any:
        version = self._versions.get(rank, 0) if role == "sampler" else None
        deadline_s = getattr(self._deadlines, setting)
        with self.book.call(role, rank, f"{setting.removesuffix('_s')} call", version=version):
            return await within(call, deadline_s=deadline_s, setting=setting, role=role, rank=rank, version=version)


def _as_result(head: tuple, refs: Sequence[Any]) -> StageResult:
    """`head`: cards, seconds, tokens, and where a role has more to say a dict of StageResult's other fields."""
    cards, busy_s, num_tokens, *more = head
    handles = tuple(Handle(ref, card) for ref, card in zip(refs, cards, strict=True))
    return StageResult(handles, busy_s, num_tokens, **(more[0] if more else {}))

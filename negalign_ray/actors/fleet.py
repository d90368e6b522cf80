"""Samplers, scorers and references as Ray actors: the rollout loop's Fleet.

Payloads pass from actor to actor by object reference. Each call returns a small head (cards, seconds, tokens), which
the conductor reads, and one object per group, which it does not.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ray

from negalign_ray.actors.guide import Guide
from negalign_ray.actors.locate import namespace_of
from negalign_ray.actors.plan import Plan
from negalign_ray.actors.processes import actor_options, start_actor, wait_until_ready, within
from negalign_ray.actors.reference import Reference
from negalign_ray.actors.sampler import Sampler
from negalign_ray.actors.scorer import Scorer
from negalign_ray.errors import NonFiniteError, RoleError, ScoreError
from negalign_ray.events import Event, EventKind, Record, forget
from negalign_ray.loops.buffer import Handle
from negalign_ray.loops.fitting import control_warning
from negalign_ray.loops.prices import price_by_prompt
from negalign_ray.loops.roles import StageResult
from negalign_ray.loops.watchdog import ActivityBook
from negalign_ray.records import Generation, Group, Order, SampleRequest, SamplingSpec, WeightReceipt

log = logging.getLogger(__name__)
ActorHandle = Any


class Pool:
    """Interchangeable actors of one role, used in turn (references: by prompt, for what they remember)."""

    def __init__(self, role: str, make: Callable[[int], ActorHandle], num: int) -> None:
        self.role, self.make = role, make
        self.actors = [make(rank) for rank in range(num)]
        self._turn = itertools.cycle(range(num))

    def next_rank(self) -> int:
        return next(self._turn)

    def replace(self, rank: int) -> None:
        ray.kill(self.actors[rank])
        self.actors[rank] = self.make(rank)

    def ready_calls(self) -> dict[str, Any]:
        return {f"{self.role}-{rank}": actor.ready.remote() for rank, actor in enumerate(self.actors)}

    def kill(self) -> None:
        for actor in self.actors:
            ray.kill(actor)


class RayFleet:
    def __init__(self, plan: Plan, *, record: Record = forget) -> None:
        config = plan.config
        self._record = record
        self.book = ActivityBook()
        self._config, self._deadlines = config, config.deadlines
        self._samplers = Pool(
            "sampler", partial(make_sampler, plan, namespace=namespace_of(config.run.name)), config.samplers.num
        )
        self._scorers = Pool(
            "scorer", lambda rank: _make_scorer(plan, rank), config.scorers.num if config.scorers.heads else 0
        )
        self._references = [
            Pool("reference", partial(_make_reference, plan, names), config.references.num)
            for names in plan.reference_pools
        ]
        self._guides = Pool("guide", lambda rank: _make_guide(plan, rank), 1 if config.uses_guide else 0)
        self._snapshot: tuple[Any, int] | None = None  # weights and version that the references follow; None = initial
        self.num_samplers = config.samplers.num
        self._versions = [0] * self.num_samplers

    def wait_until_ready(self) -> None:
        calls: dict[str, Any] = {}
        for pool in (self._samplers, self._scorers, self._guides):
            calls |= pool.ready_calls()
        for number, pool in enumerate(self._references):
            calls |= {f"reference{number}-{name.split('-')[1]}": call for name, call in pool.ready_calls().items()}
        wait_until_ready(calls, deadline_s=self._deadlines.start_s)

    def kill(self) -> None:
        for pool in (self._samplers, self._scorers, self._guides, *self._references):
            pool.kill()

    # -- Fleet -------------------------------------------------------------------------------------------------

    async def sample(self, rank: int, orders: Sequence[Order]) -> StageResult:
        # As arguments of their own, earlier groups arrive by value: this process stays the one owner of every group.
        earlier = [order.earlier.ref if order.earlier else None for order in orders]
        bare = [replace(order, earlier=None) for order in orders]
        call = self._samplers.actors[rank].sample.options(num_returns=len(orders) + 1)
        head, *groups = call.remote(bare, *earlier)
        return _as_result(await self._within("sample_s", head, "sampler", rank), groups)

    async def hold(self, groups: Sequence[Group]) -> StageResult:
        return StageResult(tuple(Handle(ray.put(group), group.card()) for group in groups), busy_s=0.0)

    async def score(self, handles: Sequence[Handle]) -> StageResult:
        """A scorer that fails twice is no reason to end the run: the groups are dropped and counted."""
        try:
            return await self._completed(self._scorers, handles, method="score", setting="score_s")
        except ScoreError:
            raise
        except RoleError as error:
            raise ScoreError(error.reason, role="scorer", rank=error.rank) from error

    async def price(self, handles: Sequence[Handle]) -> StageResult:
        """Each pool fills in its own references; with two models the groups pass through both."""
        total = StageResult(tuple(handles), busy_s=0.0)
        for pool in self._references:
            ask = partial(self._price, pool)
            result = await price_by_prompt(total.handles, num_ranks=len(pool.actors), ask=ask)
            total = StageResult(
                handles=result.handles,
                busy_s=total.busy_s + result.busy_s,
                num_tokens=total.num_tokens + result.num_tokens,
                num_prices=total.num_prices + result.num_prices,
                num_remembered=total.num_remembered + result.num_remembered,
            )
        return total

    async def _price(self, pool: Pool, rank: int, handles: Sequence[Handle]) -> StageResult:
        version = self._reference_version
        return await self._completed(pool, handles, rank=rank, method="price", setting="reference_s", version=version)

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
        because it retries by itself, and neither is a fit that diverged, because it would again.
        """
        rank = pool.next_rank() if rank is None else rank
        for attempt in range(2):
            actor = pool.actors[rank]
            call = getattr(actor, method).options(num_returns=len(handles) + 1)
            head, *groups = call.remote(*(handle.ref for handle in handles), **arguments)
            try:
                return _as_result(await self._within(setting, head, pool.role, rank), groups)
            except (ScoreError, NonFiniteError):
                raise
            except RoleError as error:
                if pool.actors[rank] is actor:  # else another wave met the same failure first
                    self._renew(pool, rank, error)
                if attempt:
                    raise
                log.warning("%s; replaced, asking again", error)
                await self._within("start_s", pool.actors[rank].ready.remote(), pool.role, rank)
        raise AssertionError("unreachable")

    def _renew(self, pool: Pool, rank: int, error: RoleError) -> None:
        """A new actor in the place of a failed one; a reference that follows gets the snapshot before any other call.

        Should that load fail, the reference refuses to price (see Reference.price), and the run ends with its reason.
        """
        self._replace(pool, rank, error)
        if pool.role == "reference" and self._snapshot is not None:
            pool.actors[rank].load_weights.remote(self._snapshot[0])

    def _replace(self, pool: Pool, rank: int, error: RoleError) -> None:
        self._record(Event(EventKind.FAULT, error.reason, role=pool.role, rank=rank))
        pool.replace(rank)
        self._record(Event(EventKind.REPLACE, "a new actor starts", role=pool.role, rank=rank))

    @property
    def _reference_version(self) -> int:
        return 0 if self._snapshot is None else self._snapshot[1]

    async def follow(self, weights: Any, version: int) -> float:
        self._snapshot = (weights, version)
        ranks = [(pool, rank) for pool in self._references for rank in range(len(pool.actors))]
        return max(await asyncio.gather(*(self._follow(pool, rank, weights) for pool, rank in ranks)), default=0.0)

    async def _follow(self, pool: Pool, rank: int, weights: Any) -> float:
        for attempt in range(2):
            call = pool.actors[rank].load_weights.remote(weights)
            try:
                return (await self._within("weights_s", call, "reference", rank)).seconds
            except RoleError as error:
                if attempt:
                    raise
                log.warning("%s; replacing it", error)
                self._replace(pool, rank, error)
                await self._within("start_s", pool.actors[rank].ready.remote(), "reference", rank)
        raise AssertionError("unreachable")

    async def load_weights(self, rank: int, weights: Any, version: int) -> WeightReceipt:
        call = self._samplers.actors[rank].load_weights.remote(weights)
        receipt = await self._within("weights_s", call, "sampler", rank)
        self._versions[rank] = version
        return receipt

    async def replace_sampler(self, rank: int, weights: Any, version: int) -> None:
        self._samplers.replace(rank)
        self._versions[rank] = 0
        await self._within("start_s", self._samplers.actors[rank].ready.remote(), "sampler", rank)
        if weights is not None:
            await self.load_weights(rank, weights, version)

    # -- checkpoints -------------------------------------------------------------------------------------------

    async def remembered(self) -> dict[str, Any]:
        """The prices of every reference, pool by pool and rank by rank."""
        return {
            "prices": [
                await asyncio.gather(*(self._prices(actor, rank) for rank, actor in enumerate(pool.actors)))
                for pool in self._references
            ]
        }

    async def _prices(self, reference: ActorHandle, rank: int) -> dict[str, float]:
        try:
            return await self._within("reference_s", reference.prices.remote(), "reference", rank)
        except RoleError as error:  # the next call for prices replaces it; a checkpoint is no reason to end the run
            log.warning("%s; a run resumed from this checkpoint computes its prices again", error)
            return {}

    async def remember(self, state: Mapping[str, Any]) -> None:
        """With another number of references a prompt may have moved to another one, so that each gets all prices."""
        for pool, kept in zip(self._references, state.get("prices", []), strict=False):
            together = {key: price for prices in kept for key, price in prices.items()}
            each = kept if len(kept) == len(pool.actors) else [together] * len(pool.actors)
            calls = [actor.remember.remote(prices) for actor, prices in zip(pool.actors, each, strict=True)]
            await asyncio.gather(
                *(self._within("reference_s", call, "reference", rank) for rank, call in enumerate(calls))
            )

    # -- evaluation --------------------------------------------------------------------------------------------

    async def generate(self, rank: int, requests: Sequence[SampleRequest], spec: SamplingSpec) -> list[Generation]:
        call = self._samplers.actors[rank].generate.remote(requests, spec)
        return await self._within("sample_s", call, "sampler", rank)

    async def _within(self, setting: str, call: Any, role: str, rank: int) -> Any:
        version = self._versions[rank] if role == "sampler" else None
        deadline_s = getattr(self._deadlines, setting)
        with self.book.call(role, rank, f"{setting.removesuffix('_s')} call", version=version):
            return await within(call, deadline_s=deadline_s, setting=setting, role=role, rank=rank, version=version)


def _as_result(head: tuple, refs: Sequence[Any]) -> StageResult:
    """`head`: cards, seconds, tokens, and where a role has more to say a dict of StageResult's other fields."""
    cards, busy_s, num_tokens, *more = head
    handles = tuple(Handle(ref, card) for ref, card in zip(refs, cards, strict=True))
    return StageResult(handles, busy_s, num_tokens, **(more[0] if more else {}))


def make_sampler(plan: Plan, rank: int, *, namespace: str | None = None) -> ActorHandle:
    config = plan.config
    options = actor_options(config.samplers, name=f"{config.run.name}/sampler-{rank}", namespace=namespace)
    return start_actor(
        Sampler,
        options,
        config,
        rank=rank,
        model_path=str(plan.model_path),
        dtype=plan.sampler_dtype,
        stop_ids=plan.stop_ids,
        max_model_len=plan.max_model_len,
        max_candidates=plan.candidates.max_candidates if plan.candidates else 0,
    )


def _make_scorer(plan: Plan, rank: int) -> ActorHandle:
    config = plan.config
    name, namespace = f"{config.run.name}/scorer-{rank}", namespace_of(config.run.name)
    options = actor_options(config.scorers, name=name, namespace=namespace, max_concurrency=64)
    return start_actor(Scorer, options, config, heads=config.scorers.heads, rank=rank)


def _make_reference(plan: Plan, names: tuple[str, ...], rank: int) -> ActorHandle:
    config = plan.config
    name, namespace = f"{config.run.name}/reference-{names[0]}-{rank}", namespace_of(config.run.name)
    options = actor_options(config.references, name=name, namespace=namespace)
    path = plan.reference_pools[names]
    return start_actor(
        Reference, options, config, names=names, rank=rank, model_path=str(path), dtype=plan.sampler_dtype
    )


def _make_guide(plan: Plan, rank: int) -> ActorHandle:
    config = plan.config
    name, namespace = f"{config.run.name}/guide-{rank}", namespace_of(config.run.name)
    options = actor_options(config.guide, name=name, namespace=namespace)
    return start_actor(Guide, options, config, rank=rank, model_path=str(plan.model_path))

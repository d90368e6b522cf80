"""Samplers, scorers, references and learners that take simulated time: a Fleet for the real rollout loop.

Payloads are left out; the cards that the loop reads are as real roles would write them, with lengths drawn by a seed.
"""

import asyncio
import itertools
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from negalign_ray.config import Config, Resources
from negalign_ray.loops.buffer import Handle
from negalign_ray.loops.roles import Offer, StageResult
from negalign_ray.planning.compute import SharedCompute
from negalign_ray.planning.costs import Costs
from negalign_ray.planning.virtual_time import now_s
from negalign_ray.planning.workload import Workload
from negalign_ray.records import Group, GroupCard, Order, Prompt, ResponseCard, Role, WeightReceipt

Actor = tuple[str, int]  # role, rank


class Timesheet:
    """When each actor was busy."""

    def __init__(self) -> None:
        self._intervals: dict[Actor, list[tuple[float, float]]] = defaultdict(list)

    def add(self, actor: Actor, start_s: float, end_s: float) -> None:
        self._intervals[actor].append((start_s, end_s))

    def busy_s(self, role: str, start_s: float, end_s: float) -> float:
        """Of all actors of the role together, within the window."""
        spans = itertools.chain.from_iterable(spans for actor, spans in self._intervals.items() if actor[0] == role)
        return sum(max(0.0, min(end, end_s) - max(start, start_s)) for start, end in spans)


class SimulatedFleet:
    def __init__(
        self,
        config: Config,
        costs: Costs,
        work: Workload,
        *,
        compute: Mapping[Actor, SharedCompute],
        num_pools: int,  # of references
    ) -> None:
        self.num_samplers = config.samplers.num
        self.timesheet = Timesheet()
        self.sampled_tokens = 0
        self._config, self._costs, self._work, self._compute = config, costs, work, compute
        self._versions = [0] * self.num_samplers
        self._locks: dict[Actor, asyncio.Lock] = defaultdict(asyncio.Lock)  # an actor does one call at a time
        self._scorers = itertools.cycle(range(config.scorers.num))
        self._references = [itertools.cycle(range(config.references.num)) for _ in range(num_pools)]
        self._random = random.Random(f"{config.run.seed}/lengths")
        self._human: dict[int, tuple[ResponseCard, ...]] = {}

    async def sample(self, rank: int, orders: Sequence[Order]) -> StageResult:
        lengths = [[self._work.draw_length(self._random) for _ in order.requests] for order in orders]
        seconds = self._costs.sample_s(
            [length for group in lengths for length in group], max_num_seqs=self._config.samplers.max_num_seqs
        )
        busy_s = await self.work(("sampler", rank), seconds, self._config.samplers)
        cards = [self._card(order, own, rank) for order, own in zip(orders, lengths, strict=True)]
        num_tokens = sum(map(sum, lengths))
        self.sampled_tokens += num_tokens
        return StageResult(tuple(Handle(None, card) for card in cards), busy_s, num_tokens)

    async def hold(self, groups: Sequence[Group]) -> StageResult:
        return StageResult(tuple(Handle(None, group.card()) for group in groups), busy_s=0.0)

    async def score(self, handles: Sequence[Handle]) -> StageResult:
        seconds = self._costs.score_groups.seconds(len(handles))
        busy_s = await self.work(("scorer", next(self._scorers)), seconds, self._config.scorers)
        return StageResult(tuple(handles), busy_s)

    async def price(self, handles: Sequence[Handle]) -> StageResult:
        num_tokens = sum(handle.card.num_tokens for handle in handles)
        seconds, busy_s = self._costs.price_tokens.seconds(num_tokens), 0.0
        for pool, turns in enumerate(self._references):
            rank = pool * self._config.references.num + next(turns)
            busy_s += await self.work(("reference", rank), seconds, self._config.references)
        return StageResult(tuple(handles), busy_s, num_tokens)

    async def guide(self, handles: Sequence[Handle]) -> StageResult:
        return StageResult(tuple(handles), busy_s=0.0)

    async def follow(self, weights: Any, version: int) -> float:
        ranks = range(len(self._references) * self._config.references.num)
        work = [self.work(("reference", rank), self._costs.weights_s, self._config.references) for rank in ranks]
        return max(await asyncio.gather(*work), default=0.0)

    async def load_weights(self, rank: int, weights: Any, version: int) -> WeightReceipt:
        seconds = await self.work(("sampler", rank), self._costs.weights_s, self._config.samplers)
        self._versions[rank] = version
        return WeightReceipt(rank, version, checksum=0, seconds=seconds, num_bytes=0)

    async def receive_weights(self, rank: int, offer: Offer, weights: Any, version: int) -> WeightReceipt:
        raise AssertionError("the simulation knows the object store alone")

    def meet(self, ranks: Sequence[int], offer: Offer) -> None:
        raise AssertionError("the simulation knows the object store alone")

    async def sleep(self, rank: int) -> None:
        pass

    async def replace_sampler(self, rank: int, weights: Any, version: int) -> None:
        raise AssertionError("nothing fails in the simulation")

    async def add_sampler(self, rank: int) -> None:
        raise AssertionError("nothing joins in the simulation")

    async def remove_sampler(self, rank: int) -> None:
        raise AssertionError("nothing leaves in the simulation")

    async def remembered(self) -> dict[str, Any]:
        raise AssertionError("the simulation writes no checkpoints")

    async def remember(self, state: Mapping[str, Any]) -> None:
        raise AssertionError("the simulation reads no checkpoints")

    async def work(self, actor: Actor, seconds: float, resources: Resources) -> float:
        """Returns how long it took beside what shares the cores (or the GPU)."""
        async with self._locks[actor]:
            started_s = now_s()
            busy_s = await self._compute[actor].work(seconds, threads=1.0 if resources.gpus else resources.threads)
            self.timesheet.add(actor, started_s, now_s())
            return busy_s

    def _card(self, order: Order, lengths: Sequence[int], rank: int) -> GroupCard:
        longest = self._work.max_new_tokens
        samples = tuple(ResponseCard(Role.SAMPLE, length, stopped=length < longest) for length in lengths)
        human = self._human_cards(order.prompt)
        num_tokens = len(order.prompt.token_ids) + sum(card.num_tokens for card in (*human, *samples))
        carried = self._work.trained_answers - self._work.answers
        num_tokens += round(carried * self._work.answer_tokens)
        cards, version = (*human, *samples), self._versions[rank]
        return GroupCard(order.order_id, version, num_tokens, cards, prompt_id=order.prompt.prompt_id)

    def _human_cards(self, prompt: Prompt) -> tuple[ResponseCard, ...]:
        if prompt.prompt_id not in self._human:
            self._human[prompt.prompt_id] = tuple(ResponseCard.of(response) for response in prompt.responses)
        return self._human[prompt.prompt_id]

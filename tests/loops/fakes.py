"""Handwritten roles for the rollout loop: they answer at once, and fail when told to."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from negalign_ray.config import LATENT_DISTANCE
from negalign_ray.data.instructions import Instruction
from negalign_ray.errors import LostObjectError, PlacementError, RoleError, ScoreError
from negalign_ray.loops.buffer import Handle
from negalign_ray.loops.candidates import with_candidates
from negalign_ray.loops.orders import OrderFactory
from negalign_ray.loops.roles import StageResult
from negalign_ray.records import Group, Order, Prompt, Response, Role, WeightReceipt

INSTRUCTIONS = (Instruction("kind", "Be kind."), Instruction("honest", "Be honest."), Instruction("fair", "Be fair."))


def make_prompt(prompt_id: int) -> Prompt:
    negative = Response(role=Role.NEGATIVE, token_ids=(7, 8, 9), text="no")
    return Prompt(prompt_id, f"prompt {prompt_id}", (("user", f"prompt {prompt_id}"),), (1, 2, prompt_id), (negative,))


def make_factory(
    *, num_prompts: int = 5, num_samples: int = 2, seed: int = 0, instructions: Sequence[Instruction] = INSTRUCTIONS
) -> OrderFactory:
    return OrderFactory(
        [make_prompt(prompt_id) for prompt_id in range(num_prompts)],
        instructions=instructions,
        num_samples=num_samples,
        seed=seed,
        context_ids=lambda prompt, instruction: (len(instruction or ""), *prompt.token_ids),
    )


def answer(order: Order, index: int, version: int) -> Response:
    request = order.requests[index]
    return Response(
        role=Role.SAMPLE,
        token_ids=(request.seed % 1000, index),
        text=f"answer {index}",
        instruction=request.instruction,
        polarity=request.polarity,
        context_ids=request.context_ids,
        weight_version=version,
        finish_reason="stop",
        sampler_logprobs=(-1.0, -2.0),
    )


@dataclass
class FakeFleet:
    """`fault(kind, number)` is asked before call number 0, 1, ... of each kind: "sample", "score", "load", "empty",
    "gate", "follow", "guide", "replace", "add", "sleep"."""

    num_samplers: int = 1
    fault: Callable[[str, int], bool] = lambda kind, number: False
    versions: dict[int, int] = field(default_factory=dict)  # of the samplers that are there
    busy: set[int] = field(default_factory=set)
    calls: dict[str, int] = field(default_factory=dict)
    replaced: list[int] = field(default_factory=list)
    replaced_at: list[object] = field(default_factory=list)  # the weights that each of them was given
    hold_replace: asyncio.Event | None = None  # when set, no new sampler is there before it
    waves: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    hold_samples: asyncio.Event | None = None  # when set, sampling waits for it
    hold_add: asyncio.Event | None = None  # when set, a new sampler does not start before it
    reference_version: int = 0
    priced_with: list[int] = field(default_factory=list)  # version of the references, for every call of `price`
    guided: list[tuple[int, ...]] = field(default_factory=list)  # order ids of every call of `guide`
    max_candidates: int = 0
    hold_guide: asyncio.Event | None = None  # when set, the guide waits for it
    meetings: list[tuple[int, ...]] = field(default_factory=list)  # ranks of every call of `meet`
    by_offer: list[tuple[int, int]] = field(default_factory=list)  # rank and version, where not from the object store
    slept: list[tuple[int, int]] = field(default_factory=list)  # rank and the version that it gave up

    def __post_init__(self):
        self.versions = dict.fromkeys(range(self.num_samplers), 0)

    def _fails(self, kind: str) -> bool:
        number = self.calls.get(kind, 0)
        self.calls[kind] = number + 1
        return self.fault(kind, number)

    async def sample(self, rank: int, orders: Sequence[Order]) -> StageResult:
        self.waves.append((rank, tuple(order.order_id for order in orders)))
        assert rank not in self.busy, "a sampler does one thing at a time"
        self.busy.add(rank)
        try:
            await asyncio.sleep(0)
            if self.hold_samples is not None:
                await self.hold_samples.wait()
        finally:
            self.busy.remove(rank)
        if any(order.earlier for order in orders) and self._fails("list"):
            raise LostObjectError("gone with its node", role="sampler", rank=rank)
        if self._fails("sample"):
            raise RoleError("killed", role="sampler", rank=rank, weight_version=self.versions[rank])
        groups = []
        for order in orders:
            keep = 0 if self._fails("empty") else len(order.requests)
            samples = tuple(answer(order, index, self.versions[rank]) for index in range(keep))
            group = Group(order.order_id, order.prompt, (*order.prompt.responses, *samples))
            earlier = order.earlier.ref if order.earlier else None
            groups.append(with_candidates(group, earlier, max_candidates=self.max_candidates))
        return _result(groups)

    async def hold(self, groups: Sequence[Group]) -> StageResult:
        return _result(groups)

    async def score(self, handles: Sequence[Handle]) -> StageResult:
        await asyncio.sleep(0)
        if self._fails("lost"):
            raise LostObjectError("gone with its node", role="scorer")
        if self._fails("score"):
            raise ScoreError("HTTP 500", role="scorer")
        return _result([_gated(_with_reward(handle.ref), closed=self._fails("gate")) for handle in handles])

    async def follow(self, weights: object, version: int) -> float:
        await asyncio.sleep(0)
        if self._fails("follow"):
            raise RoleError("checksum differs", role="reference", weight_version=self.reference_version)
        self.reference_version = version
        return 0.25

    async def guide(self, handles: Sequence[Handle]) -> StageResult:
        await asyncio.sleep(0)
        if self.hold_guide is not None:
            await self.hold_guide.wait()
        if self._fails("guide"):
            raise RoleError("killed", role="guide")
        self.guided.append(tuple(handle.card.order_id for handle in handles))
        figures = {"guide/distance": float(len(self.guided))}
        return replace(_result([_with_distance(handle.ref) for handle in handles]), figures=figures)

    async def price(self, handles: Sequence[Handle]) -> StageResult:
        await asyncio.sleep(0)
        self.priced_with.append(self.reference_version)
        num_prices = sum(len(handle.card.responses) for handle in handles)
        return replace(_result([handle.ref for handle in handles]), num_prices=num_prices, num_remembered=2)

    async def receive_weights(self, rank: int, offer: object, weights: object, version: int) -> WeightReceipt:
        assert rank not in self.busy, "a sampler does one thing at a time"
        self.by_offer.append((rank, version))
        return await self.load_weights(rank, weights, version)

    async def load_weights(self, rank: int, weights: object, version: int) -> WeightReceipt:
        await asyncio.sleep(0)
        if self._fails("load"):
            raise RoleError("checksum differs", role="sampler", rank=rank, weight_version=self.versions[rank])
        self.versions[rank] = version
        return WeightReceipt(rank, version, checksum=0, seconds=0.5, num_bytes=4)

    def meet(self, ranks: Sequence[int], offer: object) -> None:
        assert not self.busy, "all that meet are free"
        self.meetings.append(tuple(ranks))

    async def sleep(self, rank: int) -> None:
        assert rank not in self.busy, "a sampler sleeps between its calls"
        await asyncio.sleep(0)
        if self._fails("sleep"):
            raise RoleError("killed", role="sampler", rank=rank, weight_version=self.versions[rank])
        self.slept.append((rank, self.versions[rank]))

    async def remembered(self) -> dict[str, object]:
        return {}

    async def remember(self, state: Mapping[str, object]) -> None:
        pass

    async def replace_sampler(self, rank: int, weights: object, version: int) -> None:
        self.replaced.append(rank)
        if self.hold_replace is not None:
            await self.hold_replace.wait()
        self.replaced_at.append(weights)
        if self._fails("replace"):
            raise PlacementError("no place for a sampler")
        self.versions[rank] = version if weights is not None else 0

    async def add_sampler(self, rank: int) -> None:
        await asyncio.sleep(0)
        if self.hold_add is not None:
            await self.hold_add.wait()
        if self._fails("add"):
            raise PlacementError("no place for a sampler")
        assert rank not in self.versions, f"sampler {rank} is there already"
        self.versions[rank] = 0

    async def remove_sampler(self, rank: int) -> None:
        assert rank not in self.busy, f"sampler {rank} is removed in the middle of its call"
        self.versions.pop(rank, None)


def _with_reward(group: Group) -> Group:
    return replace(group, responses=tuple(replace(response, rewards={"harm": 0.25}) for response in group.responses))


def _gated(group: Group, *, closed: bool) -> Group:
    kept = tuple(response for response in group.responses if response.role is not Role.SAMPLE)
    return replace(group, responses=kept) if closed else group


def _with_distance(group: Group) -> Group:
    return replace(group, responses=tuple(replace(r, rewards={LATENT_DISTANCE: 1.0}) for r in group.responses))


def _result(groups: Sequence[Group]) -> StageResult:
    return StageResult(tuple(Handle(group, group.card()) for group in groups), busy_s=0.1, num_tokens=10)

"""A run that is interrupted at any step and resumed trains on exactly the groups of one that was not.

The fakes are as touchy as real roles: an answer depends on the weights and on what was sampled beside it, a price on
what was priced beside it the first time, a distance on the whole iteration. So a resume that asks for other waves, at
other weights, or with references that have forgotten, ends in other groups.
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negalign_ray.config import LATENT_DISTANCE, SamplingConfig
from negalign_ray.errors import RoleError
from negalign_ray.loops.buffer import Handle, Outcome
from negalign_ray.loops.candidates import CandidateLists, with_candidates
from negalign_ray.loops.roles import StageResult
from negalign_ray.loops.rollout import Rollout
from negalign_ray.loops.state import (
    RolloutState,
    groups_from_lines,
    groups_to_lines,
    state_from_json,
    state_to_json,
)
from negalign_ray.records import Group, Order, Response, Role, WeightReceipt
from tests.loops.fakes import make_factory, make_prompt

GROUPS, STEPS, PROMPTS = 3, 7, 8


def number(*parts: object) -> float:
    """A float in (0, 1) that depends on every part, with all of its bits in use."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


@dataclass
class TouchyFleet:
    num_samplers: int = 1
    max_candidates: int = 0
    lost: frozenset[int] = frozenset()  # orders whose answers are all empty
    gated: frozenset[int] = frozenset()  # orders whose answers the gate drops
    fails: frozenset[int] = frozenset()  # numbers of calls of `sample` at which the sampler dies
    turns: int = 1  # of the event loop that every call takes
    calls: int = 0
    weights: list[str] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    reference: str = "initial"
    prices: dict[str, float] = field(default_factory=dict)

    def __post_init__(self):
        self.weights, self.versions = ["initial"] * self.num_samplers, [0] * self.num_samplers

    async def _work(self) -> None:
        for _ in range(self.turns):
            await asyncio.sleep(0)

    async def sample(self, rank: int, orders: Sequence[Order]) -> StageResult:
        await self._work()
        self.calls += 1
        if self.calls - 1 in self.fails:
            raise RoleError("killed", role="sampler", rank=rank)
        beside = tuple(order.order_id for order in orders)
        groups = []
        for order in orders:
            keep = 0 if order.order_id in self.lost else len(order.requests)
            samples = tuple(self._answer(rank, order, index, beside) for index in range(keep))
            group = Group(order.order_id, order.prompt, (*order.prompt.responses, *samples))
            earlier = order.earlier.ref if order.earlier else None
            groups.append(with_candidates(group, earlier, max_candidates=self.max_candidates))
        return _result(groups)

    def _answer(self, rank: int, order: Order, index: int, beside: tuple[int, ...]) -> Response:
        request = order.requests[index]
        drawn = number(request.seed, self.weights[rank], beside, rank)
        return Response(
            Role.SAMPLE,
            (int(drawn * 10**9), index),
            f"answer {drawn}",
            instruction=request.instruction,
            context_ids=request.context_ids,
            weight_version=self.versions[rank],
            finish_reason="stop",
            sampler_logprobs=(-drawn, -drawn / 3),
        )

    async def hold(self, groups: Sequence[Group]) -> StageResult:
        return _result(groups)

    async def score(self, handles: Sequence[Handle]) -> StageResult:
        await self._work()
        groups = []
        for handle in handles:
            group = handle.ref
            kept = (r for r in group.responses if r.role is not Role.SAMPLE or group.order_id not in self.gated)
            groups.append(replace(group, responses=tuple(replace(r, rewards={"harm": number(r.text)}) for r in kept)))
        return _result(groups)

    async def price(self, handles: Sequence[Handle]) -> StageResult:
        await self._work()
        beside = tuple(handle.card.order_id for handle in handles)
        groups = []
        for handle in handles:
            priced = []
            for response in handle.ref.responses:
                key = f"{handle.ref.prompt.prompt_id}/{response.token_ids}"
                price = self.prices.setdefault(key, -number(self.reference, key, beside))
                priced.append(replace(response, ref_logprobs={"rpos": price, "rneg": price}))
            groups.append(replace(handle.ref, responses=tuple(priced)))
        return _result(groups)

    async def guide(self, handles: Sequence[Handle]) -> StageResult:
        await self._work()
        fit = number([groups_to_lines([handle.ref]) for handle in handles])
        groups = [
            replace(h.ref, responses=tuple(replace(r, rewards={LATENT_DISTANCE: fit}) for r in h.ref.responses))
            for h in handles
        ]
        return replace(_result(groups), figures={"guide/distance": fit})

    async def follow(self, weights: str, version: int) -> float:
        await self._work()
        self.reference = weights
        self.prices.clear()
        return 0.0

    async def load_weights(self, rank: int, weights: str, version: int) -> WeightReceipt:
        await self._work()
        self.weights[rank], self.versions[rank] = weights, version
        return WeightReceipt(rank, version, checksum=0, seconds=0.0, num_bytes=0)

    async def remembered(self) -> dict[str, object]:
        await self._work()
        return {"prices": dict(self.prices)}

    async def remember(self, state: Mapping[str, object]) -> None:
        await self._work()
        self.prices = dict(state["prices"])

    async def replace_sampler(self, rank: int, weights: str | None, version: int) -> None:
        self.weights[rank], self.versions[rank] = weights or "initial", version if weights else 0


def _result(groups: Sequence[Group]) -> StageResult:
    return StageResult(tuple(Handle(group, group.card()) for group in groups), busy_s=0.0)


@dataclass(frozen=True)
class Scenario:
    sampling: Mapping[str, object] = field(default_factory=dict)
    fleet: Mapping[str, object] = field(default_factory=dict)
    rollout: Mapping[str, object] = field(default_factory=dict)
    candidates: bool = False

    def make(self) -> Rollout:
        sampling = {"num_samples": 2, "online_from_step": 0, "buffer_groups": 2 * GROUPS, **self.sampling}
        return Rollout(
            fleet=TouchyFleet(max_candidates=4 if self.candidates else 0, **self.fleet),
            orders=make_factory(num_prompts=PROMPTS),
            config=SamplingConfig(**sampling),
            groups_per_step=GROUPS,
            num_steps=STEPS,
            candidates=CandidateLists(max_lists=5) if self.candidates else None,
            **self.rollout,
        )


LOST = frozenset({1, 5, 6, 21, 23})
GATED = frozenset({2, 9, 22, 24})
ITERATIONS = {"schedule": "interval", "refresh_every": 3, "buffer_groups": 3 * GROUPS}
SCENARIOS = {
    "strictly on-policy": Scenario(),
    "on-policy, two samplers": Scenario(fleet={"num_samplers": 2}),
    "on-policy, orders lost and gated": Scenario(fleet={"lost": LOST, "gated": GATED}),
    "on-policy, waves of two orders": Scenario(rollout={"orders_per_wave": 2}),
    "candidate lists": Scenario(candidates=True, fleet={"lost": LOST}),
    "initial model before T0": Scenario(sampling={"online_from_step": 4, "buffer_groups": 4 * GROUPS}),
    "initial model before T0, orders lost": Scenario(
        sampling={"online_from_step": 4, "buffer_groups": 3 * GROUPS}, fleet={"lost": LOST}
    ),
    "interval": Scenario(sampling={"schedule": "interval", "refresh_every": 3, "online_from_step": 1}),
    "self-play with a guide": Scenario(
        sampling=ITERATIONS, rollout={"references_follow": True, "wants_guide": True}, fleet={"lost": LOST}
    ),
    "human answers alone": Scenario(sampling={"num_samples": 0, "min_samples": 1}),
}


@dataclass
class Learner:
    """Its weights are a digest of everything that it was ever trained on."""

    weights: str = "initial"
    seen: list[list[str]] = field(default_factory=list)

    def train(self, groups: Sequence[Group]) -> None:
        lines = groups_to_lines(groups)
        self.seen.append(lines)
        self.weights = hashlib.sha256("".join([self.weights, *lines]).encode()).hexdigest()


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds, as text."""

    state: str
    groups: list[str]
    learner: str
    snapshot: str | None


async def train(rollout: Rollout, learner: Learner, *, first: int, last: int, turns: int = 0) -> Saved | None:
    """Steps `first` to `last - 1`, then a checkpoint some turns of the event loop later; None at the end of the run."""
    await rollout.start()
    due = rollout.schedule.due(first)
    if due == first > 0:
        await rollout.publish(due, learner.weights)  # a resumed learner begins with it
    for step in range(first, last):
        batch = await rollout.pull(step, timeout_s=60)
        learner.train([handle.ref for handle in batch.handles])
        if rollout.schedule.publishes(step + 1):
            await rollout.publish(step + 1, learner.weights)
        await rollout.trained(step)
    if last == STEPS:
        await rollout.close()
        return None
    for _ in range(turns):
        await asyncio.sleep(0)
    state, handles = rollout.capture(last)
    state = replace(state, fleet=await rollout.remembered())
    saved = Saved(
        state_to_json(state), groups_to_lines([handle.ref for handle in handles]), learner.weights, rollout.weights
    )
    await rollout.close()
    return saved


async def resume(scenario: Scenario, saved: Saved) -> tuple[Rollout, RolloutState]:
    rollout = scenario.make()
    state = state_from_json(saved.state)
    groups = groups_from_lines(saved.groups, {n: make_prompt(n) for n in range(PROMPTS)})
    rollout.restore(state, [Handle(group, group.card()) for group in groups])
    due = rollout.schedule.due(state.step)
    if 0 < due < state.step:
        await rollout.publish(due, saved.snapshot)  # the conductor has the samplers' snapshot
    return rollout, state


def uninterrupted(scenario: Scenario) -> tuple[Rollout, Learner]:
    rollout, learner = scenario.make(), Learner()
    asyncio.run(train(rollout, learner, first=0, last=STEPS))
    return rollout, learner


def interrupted(scenario: Scenario, *, at: Sequence[int], turns: int) -> tuple[Rollout, Learner]:
    async def run() -> tuple[Rollout, Learner]:
        learner, rollout, first = Learner(), scenario.make(), 0
        for last in (*at, STEPS):
            saved = await train(rollout, learner, first=first, last=last, turns=turns)
            if saved is None:
                return rollout, learner
            rollout, state = await resume(scenario, saved)
            learner, first = Learner(saved.learner, learner.seen), state.step
        raise AssertionError("the last part ends the run")

    return asyncio.run(run())


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("turns", [0, 2, 9])
def test_a_run_interrupted_at_any_step_equals_the_uninterrupted_one_bit_for_bit(name, turns):
    scenario = SCENARIOS[name]
    rollout, learner = uninterrupted(scenario)
    assert len({line for lines in learner.seen for line in lines}) == STEPS * GROUPS
    for step in range(STEPS):
        again, other = interrupted(scenario, at=[step], turns=turns)
        assert other.seen == learner.seen, f"interrupted after {step} steps"
        assert other.weights == learner.weights
        assert again.buffer.ledger.outcomes == rollout.buffer.ledger.outcomes
        assert again.buffer.ledger.issued == rollout.buffer.ledger.issued
        assert again.sampler_version == rollout.sampler_version
        assert {k: v for k, v in again.figures.items() if k >= step} == {
            k: v for k, v in rollout.figures.items() if k >= step
        }


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_run_may_be_interrupted_after_every_single_step(name):
    _, learner = uninterrupted(SCENARIOS[name])
    _, other = interrupted(SCENARIOS[name], at=range(1, STEPS), turns=3)
    assert other.seen == learner.seen


def test_references_that_forget_would_be_noticed():
    """The fakes are touchy enough: without the prices the property above does not hold."""

    async def run() -> list[list[str]]:
        scenario, learner = SCENARIOS["strictly on-policy"], Learner()
        saved = await train(scenario.make(), learner, first=0, last=4)
        assert saved is not None
        state = replace(state_from_json(saved.state), fleet={"prices": {}})
        rollout, _ = await resume(scenario, replace(saved, state=state_to_json(state)))
        await train(rollout, learner, first=4, last=STEPS)
        return learner.seen

    assert asyncio.run(run()) != uninterrupted(SCENARIOS["strictly on-policy"])[1].seen


def test_the_samplers_get_the_version_that_is_due_and_no_order_is_sent_before():
    async def run() -> None:
        scenario = SCENARIOS["strictly on-policy"]
        saved = await train(scenario.make(), Learner(), first=0, last=3)
        assert saved is not None
        rollout, state = await resume(scenario, saved)
        await rollout.start()
        for _ in range(50):
            await asyncio.sleep(0)
        assert rollout._fleet.calls == 0, "the samplers still hold the initial model"
        await rollout.publish(3, saved.learner)
        assert (await rollout.pull(3, timeout_s=60)).step == state.step == rollout.sampler_version == 3
        await rollout.close()

    asyncio.run(run())


def test_a_capture_before_the_samplers_are_back_still_holds_what_was_on_its_way():
    async def run() -> None:
        scenario = SCENARIOS["initial model before T0"]
        saved = await train(scenario.make(), Learner(), first=0, last=2, turns=1)
        assert saved is not None
        state = state_from_json(saved.state)
        assert state.waves, "something is on its way"
        rollout, _ = await resume(scenario, saved)
        again, _ = rollout.capture(2)
        assert replace(again, fleet=await rollout.remembered()) == state

    asyncio.run(run())


def first_capture(scenario: Scenario, wanted) -> Saved:
    """Of a run that has trained nothing yet, at the first turn of the event loop at which `wanted(state)` holds."""
    for turns in range(60):
        saved = asyncio.run(train(scenario.make(), Learner(), first=0, last=0, turns=turns))
        assert saved is not None
        if wanted(state_from_json(saved.state)):
            return saved
    raise AssertionError("never")


def finish(scenario: Scenario, saved: Saved) -> tuple[Rollout, Learner]:
    async def run() -> tuple[Rollout, Learner]:
        rollout, state = await resume(scenario, saved)
        learner = Learner(saved.learner)
        await train(rollout, learner, first=state.step, last=STEPS)
        return rollout, learner

    return asyncio.run(run())


def test_an_order_that_had_ended_is_not_trained_on_when_its_wave_is_made_again_and_turns_out_well():
    losing = Scenario(fleet={"lost": frozenset({1}), "turns": 5})

    def partly_ended(state: RolloutState) -> bool:
        open_ids = {each.order.order_id for each in state.slots}
        return any(order.order_id not in open_ids for wave in state.waves for _, order in wave.orders)

    saved = first_capture(losing, partly_ended)
    rollout, learner = finish(Scenario(), saved)  # a sampler of another kind: no answer is empty now
    assert '"order_id": 1,' not in "".join(line for lines in learner.seen for line in lines)
    assert rollout.buffer.ledger.outcomes == {Outcome.DROPPED_EMPTY: 1, Outcome.TRAINED: STEPS * GROUPS}


def test_groups_that_wait_for_the_rest_of_their_iteration_are_kept_and_not_made_again():
    scenario = SCENARIOS["self-play with a guide"]
    saved = first_capture(scenario, lambda state: 3 <= len(state.gathered) < 9)
    rollout, learner = finish(scenario, saved)
    assert learner.seen == uninterrupted(scenario)[1].seen
    assert rollout._fleet.calls < uninterrupted(scenario)[0]._fleet.calls


def test_a_capture_while_the_guide_is_at_work_has_the_iteration_gathered_but_for_the_wave_that_completed_it():
    slow = replace(SCENARIOS["self-play with a guide"], fleet={"turns": 4})
    saved = first_capture(slow, lambda state: len(state.gathered) == 6 and len(state.waves) == 1)
    for turns in range(1, 20):  # from the last wave being sampled until the iteration is released
        later = asyncio.run(train(slow.make(), Learner(), first=0, last=0, turns=turns + 20))
        assert later is not None
        state = state_from_json(later.state)
        assert not {slot for slot, _ in state.gathered} & {slot for wave in state.waves for slot, _ in wave.orders}
        assert finish(slow, later)[1].seen == finish(slow, saved)[1].seen


@settings(max_examples=30)
@given(
    at=st.lists(st.integers(1, STEPS - 1), unique=True, max_size=3).map(sorted),
    turns=st.integers(0, 30),
    staleness=st.integers(0, 3),
    start=st.integers(0, 4),
    num_samplers=st.integers(1, 3),
    buffer_steps=st.integers(2, 4),
    lost=st.frozensets(st.integers(0, 30), max_size=8),
    gated=st.frozensets(st.integers(0, 30), max_size=8),
    fails=st.frozensets(st.integers(0, 6), max_size=2),
)
def test_whatever_fails_no_group_is_trained_twice_and_every_order_ends_once(
    at, turns, staleness, start, num_samplers, buffer_steps, lost, gated, fails
):
    scenario = Scenario(
        sampling={
            "staleness": staleness,
            "online_from_step": start,
            "buffer_groups": buffer_steps * GROUPS,
            "max_attempts": 20,
        },
        fleet={"num_samplers": num_samplers, "lost": lost, "gated": gated, "fails": fails},
        candidates=True,
    )
    rollout, learner = interrupted(scenario, at=at, turns=turns)
    trained = [line for lines in learner.seen for line in lines]
    assert len(trained) == len(set(trained)) == STEPS * GROUPS
    ledger = rollout.buffer.ledger
    assert ledger.outcomes[Outcome.TRAINED] == STEPS * GROUPS
    assert sum(ledger.outcomes.values()) == ledger.issued
    assert not ledger.open_ids


def test_groups_and_states_read_back_exactly():
    drawn = number("any")
    response = Response(
        Role.SAMPLE, (1, 2), "täxt\n", sampler_logprobs=(-drawn, -1e-300), rewards={"harm": 1 / 3}, weight_version=4
    )
    group = Group(9, make_prompt(3), (*make_prompt(3).responses, response))
    assert groups_from_lines(groups_to_lines([group]), {3: make_prompt(3)}) == [group]
    with pytest.raises(KeyError):
        groups_from_lines(groups_to_lines([group]), {})

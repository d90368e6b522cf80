"""Self-play in iterations: references that follow the snapshots, and a guide that gets an iteration as a whole."""

import asyncio

import pytest

from negalign_ray.config import LATENT_DISTANCE, SamplingConfig
from negalign_ray.errors import RoleError
from negalign_ray.loops.buffer import Handle
from negalign_ray.loops.iteration import IterationGate
from negalign_ray.loops.rollout import Rollout
from negalign_ray.records import GroupCard
from tests.loops.fakes import FakeFleet, make_factory

GROUPS = 3


def make_rollout(fleet: FakeFleet, *, num_steps: int, every: int = 2, guide: bool = True, **sampling) -> Rollout:
    settings = {"online_from_step": 0, "buffer_groups": every * GROUPS, **sampling}
    return Rollout(
        fleet=fleet,
        orders=make_factory(num_samples=1),
        config=SamplingConfig(num_samples=1, schedule="interval", refresh_every=every, **settings),
        groups_per_step=GROUPS,
        num_steps=num_steps,
        references_follow=True,
        wants_guide=guide,
    )


async def train_all(rollout: Rollout, num_steps: int) -> list:
    await rollout.start()
    batches = []
    for step in range(num_steps):
        batches.append(await rollout.pull(step, timeout_s=2))
        if rollout.schedule.publishes(step + 1) or step + 1 == num_steps:
            await rollout.publish(step + 1, f"weights {step + 1}")
        await rollout.trained(step)
    await rollout.close()
    return batches


def run(rollout: Rollout, num_steps: int) -> list:
    return asyncio.run(train_all(rollout, num_steps))


def test_references_that_follow_price_each_iteration_with_the_snapshot_that_wrote_it():
    fleet = FakeFleet()
    batches = run(make_rollout(fleet, num_steps=6, guide=False), 6)
    assert [batch.handles[0].card.weight_version for batch in batches] == [0, 0, 2, 2, 4, 4]
    assert fleet.priced_with == [0, 0, 2, 2, 4, 4]


def test_the_last_weights_of_a_run_go_to_the_samplers_alone():
    fleet = FakeFleet()
    rollout = make_rollout(fleet, num_steps=4, guide=False)
    run(rollout, 4)
    assert (rollout.sampler_version, fleet.reference_version) == (4, 2)


def test_references_that_cannot_follow_end_the_run_and_wake_the_learner_that_waits():
    async def scenario():
        rollout = make_rollout(FakeFleet(fault=lambda kind, number: kind == "follow"), num_steps=4, guide=False)
        await rollout.start()
        for step in (0, 1):
            await rollout.pull(step, timeout_s=2)
            await rollout.trained(step)
        waiting = asyncio.create_task(rollout.pull(2, timeout_s=30))
        await asyncio.sleep(0)
        with pytest.raises(RoleError, match="checksum differs"):
            await rollout.publish(2, "weights")
        with pytest.raises(RoleError, match=r"reference\[0\] v0: checksum differs"):
            await asyncio.wait_for(waiting, 2)
        await rollout.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("num_samplers", [1, 2])
def test_the_guide_gets_all_groups_of_an_iteration_at_once_and_in_order(num_samplers):
    fleet = FakeFleet(num_samplers=num_samplers)
    batches = run(make_rollout(fleet, num_steps=5), 5)  # the last iteration is one step long
    assert fleet.guided == [tuple(range(6)), tuple(range(6, 12)), tuple(range(12, 15))]
    assert all(LATENT_DISTANCE in r.rewards for batch in batches for h in batch.handles for r in h.ref.samples)
    assert [h.card.order_id for batch in batches for h in batch.handles] == list(range(15))


def test_no_group_is_released_before_the_last_one_of_its_iteration_is_there():
    async def scenario():
        rollout = make_rollout(FakeFleet(), num_steps=4, every=4, buffer_groups=9)  # room for 3 of the 4 steps
        await rollout.start()
        with pytest.raises(TimeoutError):
            await rollout.pull(0, timeout_s=0.05)
        await rollout.close()
        assert not rollout.buffer.ledger.open_ids

    asyncio.run(scenario())


def test_a_group_that_is_ordered_again_holds_its_iteration_up_and_keeps_its_slot():
    fleet = FakeFleet(fault=lambda kind, number: (kind, number) == ("empty", 1))
    batches = run(make_rollout(fleet, num_steps=2), 2)
    assert fleet.guided == [(0, 6, 2, 3, 4, 5)]
    assert [h.card.order_id for batch in batches for h in batch.handles] == [0, 6, 2, 3, 4, 5]


def test_what_the_guide_measured_belongs_to_the_first_step_of_the_iteration():
    rollout = make_rollout(FakeFleet(), num_steps=4)
    run(rollout, 4)
    assert rollout.figures == {0: {"guide/distance": 1.0}, 2: {"guide/distance": 2.0}}


def test_a_guide_that_fails_for_good_ends_the_run_with_its_own_error():
    rollout = make_rollout(FakeFleet(fault=lambda kind, number: kind == "guide"), num_steps=2)
    with pytest.raises(RoleError, match=r"guide\[0\]: killed"):
        run(rollout, 2)


@pytest.mark.parametrize("fails", [False, True])
def test_a_fit_under_way_is_told_with_its_groups_and_its_seconds_until_it_ends_either_way(fails):
    async def scenario():
        fleet = FakeFleet(hold_guide=asyncio.Event(), fault=lambda kind, number: kind == "guide" and fails)
        rollout = make_rollout(fleet, num_steps=2)
        assert rollout.fit is None
        await rollout.start()
        await asyncio.sleep(0.02)
        num_groups, seconds = rollout.fit
        assert num_groups == 2 * GROUPS
        assert 0 <= seconds < 2
        fleet.hold_guide.set()
        await asyncio.sleep(0.02)
        assert rollout.fit is None
        assert (rollout.fatal is not None) == fails
        await rollout.close()

    asyncio.run(scenario())


def handle(slot: int) -> Handle:
    return Handle(f"group {slot}", GroupCard(slot, None, 1, (), prompt_id=slot))


def test_the_gate_opens_when_the_last_slot_of_an_iteration_arrives_and_sorts_them():
    gate = IterationGate(3, num_slots=5)
    assert gate.add([(1, handle(1))]) == []
    assert gate.add([(4, handle(4))]) == []
    assert [slot for slot, _ in gate.add([(2, handle(2)), (0, handle(0))])] == [0, 1, 2]
    assert [slot for slot, _ in gate.add([(3, handle(3))])] == [3, 4], "the last iteration is shorter"

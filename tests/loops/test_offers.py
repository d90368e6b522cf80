"""Weights that come another way than the object store, and samplers that sleep: what the crew does about them."""

import asyncio
from dataclasses import dataclass

import pytest

from negalign_ray.loops.crew import Held
from tests.loops.fakes import FakeFleet
from tests.loops.test_crew import fault_at, make_crew
from tests.loops.test_rollout import make_rollout


@dataclass(frozen=True)
class FakeOffer:
    together: bool


TOGETHER, ONE_BY_ONE = FakeOffer(together=True), FakeOffer(together=False)


async def update(crew, version: int, offer) -> None:
    async with crew.updating:
        held = Held(f"weights {version}", version)
        await crew.load(held, offer)
        crew.held = held


def test_all_samplers_are_free_before_they_meet():
    async def scenario():
        fleet = FakeFleet(num_samplers=2)
        crew = make_crew(fleet)
        may_end = asyncio.Event()

        async def call(rank: int) -> None:
            fleet.busy.add(rank)
            await may_end.wait()
            fleet.busy.remove(rank)

        asking = asyncio.create_task(crew.ask(1, call))
        await asyncio.sleep(0)
        updating = asyncio.create_task(update(crew, 1, TOGETHER))
        for _ in range(20):
            await asyncio.sleep(0)
        assert (fleet.meetings, fleet.by_offer) == ([], []), "sampler 1 is busy, and sampler 0 waits for it"
        may_end.set()
        await asyncio.gather(asking, updating)
        assert fleet.meetings == [(0, 1)]
        assert sorted(fleet.by_offer) == [(0, 1), (1, 1)]

    asyncio.run(scenario())


def test_an_offer_for_each_alone_needs_no_meeting():
    async def scenario():
        fleet = FakeFleet(num_samplers=2)
        await update(make_crew(fleet), 1, ONE_BY_ONE)
        assert (fleet.meetings, sorted(fleet.by_offer)) == ([], [(0, 1), (1, 1)])

    asyncio.run(scenario())


def test_a_late_sampler_reads_the_object_store_and_is_in_the_next_meeting():
    async def scenario():
        fleet = FakeFleet()
        crew = make_crew(fleet)
        await update(crew, 1, TOGETHER)
        await crew.join(1)
        assert fleet.versions == {0: 1, 1: 1}
        assert fleet.by_offer == [(0, 1)], "not the one that joined"
        await update(crew, 2, TOGETHER)
        assert fleet.meetings == [(0,), (0, 1)]

    asyncio.run(scenario())


@pytest.mark.parametrize("offer", [TOGETHER, ONE_BY_ONE])
def test_a_sampler_that_does_not_confirm_an_offer_is_replaced_from_the_object_store(offer):
    async def scenario():
        fleet = FakeFleet(num_samplers=2, fault=fault_at(("load", 1)))
        crew = make_crew(fleet)
        await update(crew, 1, offer)
        assert fleet.replaced == [1]
        assert fleet.versions == {0: 1, 1: 1}
        assert sorted(fleet.by_offer) == [(0, 1), (1, 1)], "the new one was offered nothing"

    asyncio.run(scenario())


def test_one_that_leaves_while_others_wait_for_it_is_not_in_the_meeting():
    async def scenario():
        fleet = FakeFleet(num_samplers=2)
        crew = make_crew(fleet)
        may_end = asyncio.Event()

        async def call(rank: int) -> None:
            await may_end.wait()

        asking = asyncio.create_task(crew.ask(1, call))
        await asyncio.sleep(0)
        updating = asyncio.create_task(update(crew, 1, TOGETHER))
        await asyncio.sleep(0)
        leaving = asyncio.create_task(crew.leave(1))
        await asyncio.sleep(0)
        may_end.set()
        await asyncio.gather(asking, updating, leaving)
        assert fleet.meetings == [(0,)]
        assert fleet.versions == {0: 1}

    asyncio.run(scenario())


# -- sleep ---------------------------------------------------------------------------------------------------------


def test_samplers_sleep_while_a_step_is_trained_and_never_while_they_have_orders():
    async def scenario():
        fleet = FakeFleet(num_samplers=2)
        rollout = make_rollout(fleet, num_steps=3, samplers_sleep=True)
        await rollout.start()
        for step in range(3):
            batches = await asyncio.gather(*(rollout.pull(step, timeout_s=60) for _ in range(3)))  # three ranks
            assert batches[0] == batches[1] == batches[2]
            assert sorted(fleet.slept) == [(rank, version) for rank in range(2) for version in range(step + 1)]
            await rollout.publish(step + 1, "weights")
            await rollout.trained(step)
        await rollout.close()

    asyncio.run(scenario())


def test_no_rank_trains_before_all_samplers_sleep():
    async def scenario():
        fleet = FakeFleet()
        rollout = make_rollout(fleet, num_steps=1, samplers_sleep=True)
        may_sleep, sleep = asyncio.Event(), fleet.sleep

        async def slow(rank: int) -> None:
            await may_sleep.wait()
            await sleep(rank)

        fleet.sleep = slow
        await rollout.start()
        ranks = [asyncio.create_task(rollout.pull(0, timeout_s=60)) for _ in range(2)]
        for _ in range(50):
            await asyncio.sleep(0)
        assert not any(rank.done() for rank in ranks)
        may_sleep.set()
        await asyncio.gather(*ranks)
        assert fleet.slept == [(0, 0)]
        await rollout.close()

    asyncio.run(scenario())


def test_a_sampler_that_dies_going_to_sleep_is_replaced():
    async def scenario():
        fleet = FakeFleet(fault=fault_at(("sleep", 0)))
        rollout = make_rollout(fleet, num_steps=1, samplers_sleep=True)
        await rollout.start()
        assert await rollout.pull(0, timeout_s=60)
        assert fleet.replaced == [0]
        await rollout.close()

    asyncio.run(scenario())

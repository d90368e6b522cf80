"""Samplers that come, go and fail while orders are under way: every order ends once, every sampler is confirmed."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negalign_ray.config import DeadlinesConfig
from negalign_ray.errors import PlacementError, RoleError
from negalign_ray.events import Event, EventKind
from negalign_ray.loops.buffer import Outcome
from negalign_ray.loops.crew import Crew, Held
from negalign_ray.planning.virtual_time import now_s, run_in_virtual_time
from tests.loops.fakes import FakeFleet
from tests.loops.test_rollout import GROUPS, make_rollout, run


def make_crew(fleet: FakeFleet, events: list[Event] | None = None) -> Crew:
    return Crew(fleet, counts=Counter(), record=(events if events is not None else []).append)


def fault_at(*calls: tuple[str, int]):
    return lambda kind, number: (kind, number) in calls


async def update(crew: Crew, version: int) -> None:
    async with crew.updating:
        held = Held(f"weights {version}", version)
        await crew.load(held)
        crew.held = held


# -- joining -------------------------------------------------------------------------------------------------------


def test_a_late_sampler_holds_the_weights_of_the_others_before_it_is_asked_anything():
    async def scenario():
        fleet = FakeFleet()
        crew = make_crew(fleet)
        await update(crew, 7)
        joining = asyncio.create_task(crew.join(1))
        while not joining.done():
            assert crew.ranks == (0,), "it starts and loads unseen"
            await asyncio.sleep(0)
        await joining
        assert crew.ranks == (0, 1)
        assert fleet.versions == {0: 7, 1: 7}

    asyncio.run(scenario())


def test_weights_that_are_published_while_a_sampler_starts_are_loaded_before_it_serves():
    async def scenario():
        fleet = FakeFleet(hold_add=asyncio.Event())
        crew = make_crew(fleet)
        joining = asyncio.create_task(crew.join(1))
        await asyncio.sleep(0.01)
        await update(crew, 3)
        fleet.hold_add.set()
        await joining
        assert fleet.versions == {0: 3, 1: 3}
        await update(crew, 4)
        assert fleet.versions == {0: 4, 1: 4}, "and it takes part in the next update"

    asyncio.run(scenario())


def test_an_update_under_way_is_not_missed_by_a_sampler_that_joins_in_the_middle_of_it():
    async def scenario():
        fleet = FakeFleet()
        crew = make_crew(fleet)
        await update(crew, 1)
        async with crew.updating:  # an update that has asked rank 0 alone
            joining = asyncio.create_task(crew.join(1))
            for _ in range(20):
                await asyncio.sleep(0)
            assert crew.ranks == (0,), "it waits for the end of the update"
            held = Held("weights 2", 2)
            await crew.load(held)
            crew.held = held
        await joining
        assert fleet.versions == {0: 2, 1: 2}

    asyncio.run(scenario())


@pytest.mark.parametrize("broken", [("add", 0), ("load", 1)])
def test_a_sampler_that_cannot_start_or_does_not_confirm_never_joins_and_leaves_nothing_behind(broken):
    async def scenario():
        fleet = FakeFleet(fault=fault_at(broken))
        crew = make_crew(fleet)
        await update(crew, 1)
        with pytest.raises((PlacementError, RoleError)):
            await crew.join(1)
        assert crew.ranks == (0,)
        assert fleet.versions == {0: 1}

    asyncio.run(scenario())


# -- leaving -------------------------------------------------------------------------------------------------------


def test_a_sampler_that_leaves_ends_its_call_first_and_what_waited_for_it_goes_to_others():
    async def scenario():
        fleet = FakeFleet(num_samplers=2)
        crew = make_crew(fleet)
        may_end, asked = asyncio.Event(), []

        async def call(rank: int) -> int:
            asked.append(rank)
            fleet.busy.add(rank)
            await may_end.wait()
            fleet.busy.remove(rank)
            return rank

        first, second = (asyncio.create_task(crew.ask(1, call)) for _ in range(2))
        await asyncio.sleep(0)
        leaving = asyncio.create_task(crew.leave(1))
        await asyncio.sleep(0)
        assert crew.ranks == (0,)
        assert not leaving.done()
        may_end.set()
        await leaving
        assert (await first, await second) == (1, 0)
        assert fleet.versions == {0: 0}

    asyncio.run(scenario())


def test_ranks_with_a_hole_are_dealt_orders_and_get_weights():
    async def scenario():
        fleet = FakeFleet(num_samplers=3)
        rollout = make_rollout(fleet, num_steps=2)
        await rollout.crew.leave(1)
        await rollout.start()
        await rollout.pull(0, timeout_s=60)
        assert sorted(fleet.waves) == [(0, (0, 1)), (2, (2,))]
        await rollout.crew.join(1)
        await rollout.publish(1, "weights")
        assert fleet.versions == {0: 1, 1: 1, 2: 1}
        await rollout.pull(1, timeout_s=60)
        assert sorted(fleet.waves[2:]) == [(0, (3,)), (1, (4,)), (2, (5,))]
        await rollout.close()

    asyncio.run(scenario())


def test_a_failure_of_a_sampler_that_is_leaving_costs_no_replacement():
    async def scenario():
        fleet, events = FakeFleet(num_samplers=2), []
        crew = make_crew(fleet, events)
        may_end = asyncio.Event()

        async def call(rank: int) -> None:
            await may_end.wait()
            raise RoleError("killed", role="sampler", rank=rank)

        asking = asyncio.create_task(crew.ask(1, call))
        await asyncio.sleep(0)
        leaving = asyncio.create_task(crew.leave(1))
        await asyncio.sleep(0)
        may_end.set()
        with pytest.raises(RoleError, match="killed"):
            await asking
        await leaving
        assert (fleet.replaced, [event.kind for event in events]) == ([], [EventKind.FAULT])

    asyncio.run(scenario())


# -- failing -------------------------------------------------------------------------------------------------------


def test_two_waves_that_meet_a_dead_sampler_replace_it_once():
    fleet = FakeFleet(fault=fault_at(("sample", 0)))
    rollout = make_rollout(fleet, num_steps=2, staleness=1)  # two waves wait for the one sampler
    run(rollout, 2)
    assert fleet.replaced == [0]
    assert rollout.counts["reissued"] == GROUPS


def test_without_room_for_a_new_one_the_others_go_on_and_the_event_says_why():
    events: list[Event] = []
    fleet = FakeFleet(num_samplers=2, fault=fault_at(("sample", 0), ("replace", 0)))
    rollout = make_rollout(fleet, num_steps=3, record=events.append)
    batches = run(rollout, 3)
    assert [h.card.order_id for batch in batches for h in batch.handles] == list(range(9)), "none lost, none twice"
    assert list(fleet.versions) == [1]
    assert [event.kind for event in events] == [EventKind.FAULT, EventKind.SCALE]
    assert events[1].reason == "it cannot be replaced, 1 go on without it: no place for a sampler"


def test_the_last_sampler_takes_the_run_with_it_when_it_cannot_be_replaced():
    fleet = FakeFleet(fault=fault_at(("sample", 1), ("replace", 0)))
    with pytest.raises(PlacementError, match="no place for a sampler"):
        run(make_rollout(fleet, num_steps=3), 3)


def test_work_that_is_spread_comes_back_in_order_and_what_one_failed_at_is_asked_once_more():
    async def scenario():
        fleet = FakeFleet(num_samplers=3)
        crew = make_crew(fleet)
        await crew.leave(1)
        asked: list[tuple[int, tuple[int, ...]]] = []

        async def call(rank: int, part) -> list[int]:
            asked.append((rank, tuple(part)))
            if len(asked) == 1:
                raise RoleError("killed", role="sampler", rank=rank)
            return [10 * item for item in part]

        assert await crew.spread([1, 2, 3], call) == [10, 20, 30]
        assert sorted(asked) == [(0, (1, 2)), (0, (1, 2)), (2, (3,))]
        assert fleet.replaced == [0]
        assert await crew.spread([], call) == []

    asyncio.run(scenario())


class Deadly(FakeFleet):
    """Every call ends at its deadline, and so does every start of a new sampler, but for the last call of all."""

    deadlines = DeadlinesConfig()

    async def call(self, rank: int, part: list[int]) -> list[int]:
        await asyncio.sleep(self.deadlines.sample_s)
        if len(self.replaced) < 2:
            raise RoleError("no answer within deadlines.sample_s", role="sampler", rank=rank)
        return part

    async def replace_sampler(self, rank: int, weights: object, version: int) -> None:
        self.replaced.append(rank)
        await asyncio.sleep(self.deadlines.place_s + self.deadlines.start_s + self.deadlines.weights_s)


def test_answers_that_take_all_that_their_parts_may_take_come_before_their_own_deadline():
    async def scenario() -> float:
        fleet = Deadly()
        crew = make_crew(fleet)
        orders = asyncio.create_task(crew.ask(0, lambda rank: fleet.call(rank, [])))  # under way, and will fail
        await asyncio.sleep(0)
        assert await crew.spread([1, 2], fleet.call) == [1, 2]
        assert isinstance(orders.exception(), RoleError)
        return now_s()

    deadlines = Deadly.deadlines
    took_s = run_in_virtual_time(scenario())
    assert took_s == pytest.approx(3 * deadlines.sample_s + 2 * deadlines.replace_s)
    assert took_s < deadlines.answers_s


# -- asleep while learners train -------------------------------------------------------------------------------


def test_the_successor_of_a_sampler_that_could_not_sleep_sleeps_in_its_place():
    async def scenario():
        fleet = FakeFleet(num_samplers=2, fault=fault_at(("sleep", 0)))
        crew = make_crew(fleet)
        await crew.rest()
        assert fleet.replaced == [0]
        assert sorted(fleet.slept) == [(0, 0), (1, 0)]

    asyncio.run(scenario())


def test_a_sampler_that_cannot_sleep_and_whose_successor_cannot_either_is_an_error():
    fleet = FakeFleet(fault=lambda kind, number: kind == "sleep")
    with pytest.raises(RoleError, match="killed"):
        asyncio.run(make_crew(fleet).rest())


def test_a_sampler_that_joins_while_the_others_sleep_sleeps_too_until_the_next_weights():
    async def scenario():
        fleet = FakeFleet()
        crew = make_crew(fleet)
        await update(crew, 1)
        await crew.rest()
        await crew.join(1)
        assert fleet.slept == [(0, 1), (1, 1)]
        assert crew.ranks == (0, 1)
        await update(crew, 2)
        assert fleet.versions == {0: 2, 1: 2}
        await crew.join(2)
        assert (2, 2) not in fleet.slept, "by now they are awake"

    asyncio.run(scenario())


# -- when the learners have ended ----------------------------------------------------------------------------------


async def copied(weights: object) -> str:
    await asyncio.sleep(0)
    return f"copy of {weights}"


async def fail_to_answer(rank: int) -> None:
    raise RoleError("killed", role="sampler", rank=rank)


def test_a_sampler_lost_after_the_learners_have_ended_is_replaced_at_the_copy_that_outlives_them():
    async def scenario():
        fleet = FakeFleet(num_samplers=2)
        crew = make_crew(fleet)
        await update(crew, 3)
        await crew.keep(copied)
        assert crew.held == Held("copy of weights 3", 3)
        with pytest.raises(RoleError):
            await crew.ask(0, fail_to_answer)
        assert fleet.replaced_at == ["copy of weights 3"]
        await crew.join(2)
        assert fleet.versions == {0: 3, 1: 3, 2: 3}

    asyncio.run(scenario())


def test_the_learners_end_only_when_a_sampler_that_is_being_replaced_has_read_their_weights():
    async def scenario():
        fleet = FakeFleet(hold_replace=asyncio.Event())
        crew = make_crew(fleet)
        await update(crew, 3)
        asking = asyncio.create_task(crew.ask(0, fail_to_answer))
        await asyncio.sleep(0)
        keeping = asyncio.create_task(crew.keep(copied))
        await asyncio.sleep(0.01)
        assert not keeping.done()
        fleet.hold_replace.set()
        await keeping
        assert fleet.replaced_at == ["weights 3"]
        with pytest.raises(RoleError):
            await asking

    asyncio.run(scenario())


def test_the_initial_model_needs_no_copy():
    async def scenario():
        crew = make_crew(FakeFleet())
        await crew.keep(copied)
        assert crew.held == Held()

    asyncio.run(scenario())


def test_groups_that_cannot_be_made_are_no_reason_to_end_a_run_that_has_trained():
    async def scenario():
        rollout = make_rollout(FakeFleet(), num_steps=1)
        await rollout.publish(1, "weights 1")
        await rollout.outlive_learners(copied)
        await rollout.fail(RoleError("no place for the last reference", role="reference"))
        assert rollout.fatal is None
        await rollout.wait_for_version(1, timeout_s=1)
        assert rollout.weights == "copy of weights 1"

    asyncio.run(scenario())


# -- whatever happens ----------------------------------------------------------------------------------------------

MOVES = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["join", "leave"])), max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    moves=MOVES,
    faults=st.sets(
        st.tuples(st.sampled_from(["sample", "score", "load", "empty", "replace", "add"]), st.integers(0, 6)),
        max_size=6,
    ),
    num_samplers=st.integers(1, 3),
    staleness=st.integers(0, 2),
)
def test_every_order_ends_exactly_once_whoever_comes_goes_or_fails(moves, faults, num_samplers, staleness):
    """A move is (step, join or leave), made in the background while the step is sampled and trained."""

    async def move(rollout, kind: str) -> None:
        ranks = rollout.crew.ranks
        if kind == "leave" and len(ranks) > 1:
            await rollout.crew.leave(ranks[0])
        elif kind == "join":
            await rollout.crew.join(next(rank for rank in range(99) if rank not in fleet.versions))

    async def scenario() -> None:
        await rollout.start()
        moving = []
        for step in range(4):
            for at, kind in moves:
                if at == step:
                    moving.append(asyncio.create_task(move(rollout, kind)))
                    await asyncio.sleep(0)
            batch = await rollout.pull(step, timeout_s=60)
            trained.extend(handle.card.order_id for handle in batch.handles)
            oldest = rollout.schedule.oldest_allowed(step)
            assert all(oldest <= handle.card.weight_version <= step for handle in batch.handles)
            await rollout.publish(step + 1, f"weights {step + 1}")
            assert {fleet.versions[rank] for rank in rollout.crew.ranks} == {step + 1}
            await rollout.trained(step)
        await asyncio.gather(*moving, return_exceptions=True)
        assert set(rollout.crew.ranks) == set(fleet.versions), "who left is gone, who failed to join left nothing"
        await rollout.close()

    fleet = FakeFleet(num_samplers=num_samplers, fault=lambda kind, number: (kind, number) in faults)
    rollout = make_rollout(fleet, num_steps=4, staleness=staleness, buffer_groups=9, max_attempts=20)
    trained: list[int] = []
    try:
        asyncio.run(scenario())
    except PlacementError:  # the last one could not be replaced
        assert any(kind == "replace" for kind, _ in faults)
        return
    ledger = rollout.buffer.ledger
    assert len(set(trained)) == len(trained) == 4 * GROUPS == ledger.outcomes[Outcome.TRAINED]
    assert sum(ledger.outcomes.values()) == ledger.issued
    assert not ledger.open_ids

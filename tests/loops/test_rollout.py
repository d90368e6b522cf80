"""The conductor's loop, driven by fakes: every order ends exactly once, whatever fails."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negalign_ray.config import SamplingConfig
from negalign_ray.errors import RoleError
from negalign_ray.events import Event, EventKind, Record, forget
from negalign_ray.loops.buffer import Outcome
from negalign_ray.loops.candidates import CandidateLists
from negalign_ray.loops.rollout import Rollout
from tests.loops.fakes import FakeFleet, make_factory

GROUPS = 3


def make_rollout(
    fleet: FakeFleet,
    *,
    num_steps: int,
    num_samples: int = 2,
    num_prompts: int = 5,
    candidates: CandidateLists | None = None,
    wants_references: bool = True,
    record: Record = forget,
    samplers_sleep: bool = False,
    **sampling,
) -> Rollout:
    config = SamplingConfig(num_samples=max(num_samples, 1), **{"online_from_step": 0, "buffer_groups": 6, **sampling})
    return Rollout(
        fleet=fleet,
        orders=make_factory(num_samples=num_samples, num_prompts=num_prompts),
        config=config,
        groups_per_step=GROUPS,
        num_steps=num_steps,
        candidates=candidates,
        wants_references=wants_references,
        samplers_sleep=samplers_sleep,
        record=record,
    )


async def train_all(rollout: Rollout, num_steps: int) -> list:
    """A learner that does nothing but pull, publish and report."""
    await rollout.start()
    batches = []
    for step in range(num_steps):
        batch = await rollout.pull(step, timeout_s=5)
        batches.append(batch)
        if rollout.schedule.publishes(step + 1):
            await rollout.publish(step + 1, f"weights {step + 1}")
        await rollout.trained(step)
    await rollout.close()
    return batches


def run(rollout: Rollout, num_steps: int) -> list:
    return asyncio.run(train_all(rollout, num_steps))


def test_strictly_on_policy_batches_are_written_by_the_version_that_trains_on_them():
    batches = run(make_rollout(FakeFleet(), num_steps=4), 4)
    assert [{h.card.weight_version for h in batch.handles} for batch in batches] == [{0}, {1}, {2}, {3}]


def test_one_step_of_staleness_lets_the_next_step_be_sampled_while_this_one_trains():
    async def scenario():
        fleet = FakeFleet()
        rollout = make_rollout(fleet, num_steps=3, staleness=1)
        await rollout.start()
        await rollout.pull(0, timeout_s=5)
        await rollout.pull(1, timeout_s=5)  # there before step 0 was reported as trained
        assert len(fleet.waves) == 2
        await rollout.close()

    asyncio.run(scenario())


def test_on_policy_sampling_waits_for_the_new_weights():
    async def scenario():
        rollout = make_rollout(FakeFleet(), num_steps=2)
        await rollout.start()
        await rollout.pull(0, timeout_s=5)
        await rollout.trained(0)
        with pytest.raises(TimeoutError):
            await rollout.pull(1, timeout_s=0.05)
        await rollout.publish(1, "weights")
        assert (await rollout.pull(1, timeout_s=5)).handles[0].card.weight_version == 1
        await rollout.close()

    asyncio.run(scenario())


def test_waves_and_new_weights_wait_for_an_evaluation():
    async def scenario():
        fleet = FakeFleet()
        rollout = make_rollout(fleet, num_steps=2)

        async def evaluates(rank, questions):
            await asyncio.sleep(0.05)
            assert fleet.waves == []
            return questions

        asking = asyncio.create_task(rollout.crew.spread(["a", "b"], evaluates))
        await asyncio.sleep(0)
        await rollout.start()
        assert await asking == ["a", "b"]
        await rollout.pull(0, timeout_s=5)
        async with rollout.undisturbed() as version:
            publishing = asyncio.create_task(rollout.publish(1, "weights"))
            await asyncio.sleep(0.05)
            assert (version, fleet.versions) == (0, {0: 0})
        await publishing
        assert fleet.versions == {0: 1}
        await rollout.trained(0)
        await rollout.pull(1, timeout_s=5)
        await rollout.close()

    asyncio.run(scenario())


def test_a_step_is_split_evenly_and_in_order_over_the_samplers():
    fleet = FakeFleet(num_samplers=2)
    run(make_rollout(fleet, num_steps=2), 2)
    assert sorted(fleet.waves) == [(0, (0, 1)), (0, (3, 4)), (1, (2,)), (1, (5,))]


def test_batches_keep_the_order_of_the_orders_with_any_number_of_samplers():
    for num_samplers in (1, 2, 3):
        batches = run(make_rollout(FakeFleet(num_samplers=num_samplers), num_steps=3), 3)
        assert [h.card.order_id for batch in batches for h in batch.handles] == list(range(9))


def test_a_failed_sampler_is_replaced_and_its_orders_are_issued_again():
    fleet = FakeFleet(fault=lambda kind, number: (kind, number) == ("sample", 1))
    rollout = make_rollout(fleet, num_steps=3)
    batches = run(rollout, 3)
    assert fleet.replaced == [0]
    assert rollout.counts["reissued"] == GROUPS
    assert [h.card.order_id for batch in batches for h in batch.handles] == list(range(9)), "none lost, none twice"


def test_what_happened_to_a_sampler_is_recorded_with_its_reason():
    events: list[Event] = []
    run(make_rollout(FakeFleet(fault=lambda kind, n: (kind, n) == ("load", 0)), num_steps=2, record=events.append), 2)
    assert [(e.kind, e.role, e.rank, e.weight_version) for e in events] == [
        (EventKind.FAULT, "sampler", 0, None),
        (EventKind.REPLACE, "sampler", 0, 1),
    ]
    assert events[0].reason == "checksum differs"


def test_a_sampler_that_does_not_confirm_new_weights_is_replaced_at_the_new_version():
    fleet = FakeFleet(fault=lambda kind, number: (kind, number) == ("load", 0))
    batches = run(make_rollout(fleet, num_steps=2), 2)
    assert fleet.replaced == [0]
    assert {h.card.weight_version for h in batches[1].handles} == {1}


def test_a_sampler_that_always_fails_ends_the_run_with_its_own_error():
    rollout = make_rollout(FakeFleet(fault=lambda kind, number: kind == "sample"), num_steps=2, max_attempts=3)
    with pytest.raises(RoleError, match=r"sampler\[0\] v0: killed"):
        run(rollout, 2)
    assert len(rollout.buffer.ledger.open_ids) == GROUPS, "the driver ends them with close()"


def test_a_group_whose_scoring_fails_is_dropped_counted_and_ordered_again_never_scored_zero():
    rollout = make_rollout(FakeFleet(fault=lambda kind, number: (kind, number) == ("score", 0)), num_steps=2)
    batches = run(rollout, 2)
    assert rollout.buffer.ledger.outcomes == {Outcome.DROPPED_SCORE: 3, Outcome.TRAINED: 6}
    assert all(h.card.rewards["harm", "sample"] == 0.25 for batch in batches for h in batch.handles)


def test_groups_that_went_down_with_a_node_are_counted_and_ordered_again():
    rollout = make_rollout(FakeFleet(fault=lambda kind, number: (kind, number) == ("lost", 0)), num_steps=2)
    run(rollout, 2)
    assert rollout.buffer.ledger.outcomes == {Outcome.DROPPED_LOST: 3, Outcome.TRAINED: 6}


def test_a_group_without_usable_samples_is_replaced_in_its_own_slot():
    rollout = make_rollout(FakeFleet(fault=lambda kind, number: (kind, number) == ("empty", 1)), num_steps=1)
    (batch,) = run(rollout, 1)
    assert [h.card.order_id for h in batch.handles] == [0, 3, 2]
    assert rollout.buffer.ledger.outcomes == {Outcome.DROPPED_EMPTY: 1, Outcome.TRAINED: 3}


def test_all_that_a_wave_lost_is_ordered_again_in_one_wave():
    fleet = FakeFleet(fault=lambda kind, number: kind == "empty" and number in (0, 2))
    rollout = make_rollout(fleet, num_steps=1)
    (batch,) = run(rollout, 1)
    assert [h.card.order_id for h in batch.handles] == [3, 1, 4]
    assert fleet.waves == [(0, (0, 1, 2)), (0, (3, 4))]


def test_a_sampler_failure_costs_a_prompt_none_of_its_attempts():
    def fault(kind: str, number: int) -> bool:
        return (kind == "empty" and number < 3) or (kind == "sample" and number == 1)

    rollout = make_rollout(FakeFleet(fault=fault), num_steps=1, max_attempts=2)
    (batch,) = run(rollout, 1)
    assert [h.card.order_id for h in batch.handles] == [3, 4, 5]
    assert rollout.buffer.ledger.outcomes == {Outcome.DROPPED_EMPTY: 3, Outcome.TRAINED: 3}


def test_a_head_that_never_works_ends_the_run_instead_of_ordering_for_ever():
    rollout = make_rollout(FakeFleet(fault=lambda kind, number: kind == "score"), num_steps=1, max_attempts=2)
    with pytest.raises(RoleError, match=r"9 orders in a row.*HTTP 500"):
        run(rollout, 1)


def test_interval_mode_samples_from_one_snapshot_until_the_next_refresh():
    rollout = make_rollout(FakeFleet(), num_steps=6, schedule="interval", online_from_step=1, refresh_every=2)
    batches = run(rollout, 6)
    assert [batch.handles[0].card.weight_version for batch in batches] == [0, 1, 1, 3, 3, 5]


def test_stopping_hands_every_waiting_learner_none():
    async def scenario():
        fleet = FakeFleet(hold_samples=asyncio.Event())
        rollout = make_rollout(fleet, num_steps=2)
        await rollout.start()
        waiting = asyncio.create_task(rollout.pull(0, timeout_s=5))
        await asyncio.sleep(0.01)
        await rollout.stop()
        assert await waiting is None
        await rollout.close()
        assert rollout.buffer.ledger.outcomes == {Outcome.FAILED: GROUPS}

    asyncio.run(scenario())


def test_a_step_that_one_rank_has_is_handed_to_the_others_even_after_a_stop():
    async def scenario():
        rollout = make_rollout(FakeFleet(), num_steps=3, staleness=1)
        await rollout.start()
        first = await rollout.pull(0, timeout_s=5)
        await rollout.stop()
        assert await rollout.pull(0, timeout_s=5) == first, "else the ranks would wait for each other in a collective"
        assert await rollout.pull(1, timeout_s=5) is None
        await rollout.close()

    asyncio.run(scenario())


def test_methods_without_samples_never_trouble_a_sampler():
    fleet = FakeFleet()
    batches = run(make_rollout(fleet, num_steps=2, num_samples=0), 2)
    assert fleet.waves == []
    assert batches[0].handles[0].card.weight_version is None


def carried(handle) -> list:
    return [response for response in handle.ref.responses if response.carried]


def test_the_second_round_of_a_prompt_holds_the_answers_of_the_first_and_only_methods_that_ask_for_it_have_that():
    lists = CandidateLists(max_lists=100)
    rollout = make_rollout(FakeFleet(max_candidates=4), num_steps=4, num_prompts=6, candidates=lists)
    batches = run(rollout, 4)  # 6 prompts, 3 a step: two passes
    first = {h.ref.prompt.prompt_id: h.ref for batch in batches[:2] for h in batch.handles}
    assert not any(carried(h) for batch in batches[:2] for h in batch.handles)
    for batch in batches[2:]:
        for handle in batch.handles:
            was = first[handle.ref.prompt.prompt_id]
            assert [c.token_ids for c in carried(handle)] == [s.token_ids for s in was.samples]
            assert handle.card.weight_version == batch.step, "staleness is that of the fresh samples"
            assert handle.card.num_samples == 2
    assert len(lists) == 6

    without = run(make_rollout(FakeFleet(max_candidates=4), num_steps=4, num_prompts=6), 4)
    assert not any(carried(h) for batch in without for h in batch.handles)


def test_candidates_are_the_same_whether_a_step_is_reported_before_or_after_its_weights_are_published():
    async def scenario(report_first: bool) -> list:
        lists = CandidateLists(max_lists=9)
        rollout = make_rollout(FakeFleet(max_candidates=4), num_steps=3, num_prompts=3, candidates=lists)
        await rollout.start()
        batches = []
        for step in range(3):
            batches.append(await rollout.pull(step, timeout_s=5))
            ends = [rollout.trained(step), rollout.publish(step + 1, "weights")]
            for end in ends if report_first else reversed(ends):
                await end
        await rollout.close()
        return [[response.token_ids for response in h.ref.responses] for batch in batches for h in batch.handles]

    assert asyncio.run(scenario(True)) == asyncio.run(scenario(False))


def test_candidates_that_went_down_with_a_node_cost_neither_the_sampler_nor_the_order():
    lists = CandidateLists(max_lists=9)
    fleet = FakeFleet(max_candidates=4, fault=lambda kind, number: (kind, number) == ("list", 0))
    rollout = make_rollout(fleet, num_steps=3, num_prompts=3, candidates=lists)
    batches = run(rollout, 3)
    assert fleet.replaced == []
    assert rollout.buffer.ledger.outcomes == {Outcome.TRAINED: 9}
    assert [[len(carried(h)) for h in batch.handles] for batch in batches] == [[0] * 3, [0] * 3, [2] * 3]


def test_a_group_that_was_dropped_leaves_no_candidates_and_its_replacement_gets_the_list():
    fleet = FakeFleet(max_candidates=4, fault=lambda kind, number: (kind, number) == ("empty", 3))
    batches = run(make_rollout(fleet, num_steps=2, num_prompts=3, candidates=CandidateLists(max_lists=9)), 2)
    assert [len(carried(h)) for h in batches[1].handles] == [2, 2, 2]


def test_orders_of_a_failed_sampler_are_issued_again_without_lists_so_that_a_lost_one_cannot_end_the_run():
    fleet = FakeFleet(max_candidates=4, fault=lambda kind, number: (kind, number) == ("sample", 1))
    batches = run(make_rollout(fleet, num_steps=3, num_prompts=3, candidates=CandidateLists(max_lists=9)), 3)
    assert [[len(carried(h)) for h in batch.handles] for batch in batches] == [[0] * 3, [0] * 3, [2] * 3]


@settings(max_examples=60, deadline=None)
@given(
    faults=st.sets(st.tuples(st.sampled_from(["sample", "score", "load", "empty"]), st.integers(0, 6)), max_size=8),
    num_samplers=st.integers(1, 3),
    staleness=st.integers(0, 3),
    buffer_groups=st.integers(3, 12),
    start=st.integers(0, 3),
)
def test_every_order_ends_exactly_once_whatever_fails(faults, num_samplers, staleness, buffer_groups, start):
    fleet = FakeFleet(num_samplers=num_samplers, fault=lambda kind, number: (kind, number) in faults)
    rollout = make_rollout(
        fleet, num_steps=4, staleness=staleness, buffer_groups=buffer_groups, online_from_step=start, max_attempts=20
    )
    batches = run(rollout, 4)
    ledger = rollout.buffer.ledger
    trained = [h.card.order_id for batch in batches for h in batch.handles]
    assert len(set(trained)) == len(trained) == 4 * GROUPS == ledger.outcomes[Outcome.TRAINED]
    assert sum(ledger.outcomes.values()) == ledger.issued
    assert not ledger.open_ids
    for batch in batches:
        oldest = rollout.schedule.oldest_allowed(batch.step)
        assert all(oldest <= h.card.weight_version <= batch.step for h in batch.handles)

import pytest

from negalign_ray.loops.buffer import Handle, Outcome, SlotBuffer
from negalign_ray.records import GroupCard
from tests.loops.fakes import make_factory


def card(order_id: int, version: int | None = 0) -> GroupCard:
    return GroupCard(order_id, version, num_tokens=10, responses=(), prompt_id=0)


def filled_buffer(versions=(0, 0)) -> SlotBuffer:
    buffer, factory = SlotBuffer(groups_per_step=2, capacity=4), make_factory()
    for slot, version in enumerate(versions):
        order = factory.next_order()
        buffer.issue(slot, order)
        buffer.fill(slot, Handle(f"group {slot}", card(order.order_id, version)))
    return buffer


def test_a_step_is_ready_only_when_all_its_slots_are_filled():
    buffer = filled_buffer(versions=(0,))
    assert not buffer.is_ready(0)
    assert filled_buffer().is_ready(0)


def test_every_rank_may_take_the_same_batch_and_training_frees_the_room():
    buffer = filled_buffer()
    assert buffer.take(0) == buffer.take(0)
    buffer.trained(0)
    assert (len(buffer), buffer.ledger.outcomes) == (0, {Outcome.TRAINED: 2})


def test_only_groups_written_by_too_old_versions_are_stale():
    assert filled_buffer(versions=(3, 5)).stale_slots(0, oldest_allowed=4) == [0]
    assert filled_buffer(versions=(None, 4)).stale_slots(0, oldest_allowed=4) == []


def test_a_dropped_order_leaves_its_slot_waiting():
    buffer = filled_buffer()
    assert buffer.drop(1, Outcome.DROPPED_STALE).order_id == 1
    assert not buffer.is_ready(0)
    assert buffer.ledger.open_ids == {0}


def test_a_batch_cannot_be_trained_twice_nor_without_being_taken():
    buffer = filled_buffer()
    with pytest.raises(AssertionError, match="never taken"):
        buffer.trained(0)
    buffer = filled_buffer()
    buffer.take(0)
    buffer.trained(0)
    with pytest.raises(KeyError):
        buffer.trained(0)


def test_the_buffer_has_room_only_for_whole_steps():
    buffer = filled_buffer()
    assert buffer.has_room_for_step()
    order = make_factory(seed=9).next_order()
    buffer.issue(2, order.__class__(99, order.prompt, order.requests))
    assert not buffer.has_room_for_step()


def test_giving_up_ends_every_open_order_as_failed():
    buffer = filled_buffer()
    buffer.give_up()
    assert (buffer.ledger.outcomes, buffer.ledger.open_ids) == ({Outcome.FAILED: 2}, frozenset())

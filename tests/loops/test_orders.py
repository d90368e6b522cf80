from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from negalign_ray.data.instructions import Instruction, load_instructions
from negalign_ray.loops.orders import PromptCursor
from negalign_ray.records import Polarity
from tests.loops.fakes import make_factory


@given(num_prompts=st.integers(1, 20), passes=st.integers(1, 4), seed=st.integers(0, 100))
def test_every_pass_of_the_cursor_visits_every_prompt_once(num_prompts, passes, seed):
    cursor = PromptCursor(num_prompts, seed=seed)
    for _ in range(passes):
        assert sorted(cursor.next() for _ in range(num_prompts)) == list(range(num_prompts))


def test_the_same_seed_gives_the_same_orders():
    assert [make_factory(seed=3).next_order() for _ in range(7)] == [
        make_factory(seed=3).next_order() for _ in range(7)
    ]
    first, second = make_factory(seed=3), make_factory(seed=4)
    assert [first.next_order().requests for _ in range(5)] != [second.next_order().requests for _ in range(5)]


def test_instructions_take_turns_over_orders_so_that_all_are_used_equally():
    factory = make_factory(num_samples=2)
    used = Counter(request.instruction for _ in range(6) for request in factory.next_order().requests)
    assert used == {"kind": 4, "honest": 4, "fair": 4}


def test_a_request_carries_the_polarity_of_its_instruction():
    good, bad = Instruction("kind", "Be kind.", Polarity.POSITIVE), Instruction("rude", "Be rude.", Polarity.NEGATIVE)
    order = make_factory(num_samples=3, instructions=(good, bad, Instruction("fair", "Be fair."))).next_order()
    asked = [(request.instruction, request.polarity) for request in order.requests]
    assert asked == [("kind", Polarity.POSITIVE), ("rude", Polarity.NEGATIVE), ("fair", None)]


def test_a_repeated_order_asks_for_the_same_prompt_with_other_seeds():
    factory = make_factory()
    order = factory.next_order()
    again = factory.again(order)
    assert again.prompt == order.prompt
    assert (again.order_id, again.attempt) == (1, 1)
    assert {request.seed for request in again.requests}.isdisjoint(request.seed for request in order.requests)


def test_a_method_without_samples_orders_none():
    assert make_factory(num_samples=0).next_order().requests == ()


def test_good_and_bad_instructions_are_dealt_in_turn_however_they_stand_in_the_file():
    good = tuple(Instruction(f"g{n}", "Be kind.", Polarity.POSITIVE) for n in range(1, 4))
    bad = tuple(Instruction(f"b{n}", "Be rude.", Polarity.NEGATIVE) for n in range(1, 3))
    factory = make_factory(num_samples=2, instructions=(*good, *bad))
    dealt = [[request.instruction for request in factory.next_order().requests] for _ in range(6)]
    assert dealt == [["g1", "b1"], ["g2", "b2"], ["g3", "b1"], ["g1", "b2"], ["g2", "b1"], ["g3", "b2"]]


def test_packaged_instructions_are_dealt_in_the_order_of_their_file():
    for name in ("moral", "neat", "neat_pp"):
        instructions = load_instructions(name)
        factory = make_factory(num_samples=len(instructions), instructions=instructions)
        asked = [request.instruction for request in factory.next_order().requests]
        assert asked == [instruction.id for instruction in instructions]

"""Sets are merged by prompt, priced in one call, and every set gets its own log-probs back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negalign_ray.data.collate import pack_rows
from negalign_ray.evaluation.pricing import PriceBook, merge_by_prompt
from negalign_ray.records import Group, Prompt, Response, Role


def make_group(prompt, *responses, order_id=0):
    record = Prompt(order_id, "", (), tuple(prompt), ())
    return Group(order_id, record, tuple(Response(Role.SAMPLE, tuple(ids), "") for ids in responses))


class FakeModel:
    """Prices a response by its tokens and its prompt's; remembers what every call held."""

    def __init__(self):
        self.calls = []

    def price(self, groups):
        self.calls.append(list(groups))
        return [[one_price(group.prompt.token_ids, r.token_ids) for r in group.responses] for group in groups]

    @property
    def num_tokens(self):
        """What a model computes for all calls, in rows of at most 64 tokens."""
        return sum(pack_rows(groups, max_row_tokens=64).num_tokens for groups in self.calls)


def one_price(prompt, response):
    return -float(100 * sum(prompt) + sum(position * token for position, token in enumerate(response, start=1)))


P, Q = (1,) * 10, (2,) * 4
NEGATIVES = [make_group(P, (10, 11, 12), (13, 14)), make_group(Q, (15,))]
GOOD = [make_group(P, (20,) * 5, order_id=7)]
GREEDY = [make_group(P, (13, 14)), make_group(Q, (30, 31))]  # the model says one of the negatives


def test_one_group_per_prompt_holds_every_different_response_in_order_of_appearance():
    first, second = merge_by_prompt([*NEGATIVES, *GOOD, *GREEDY])
    assert (first.prompt, second.prompt) == (NEGATIVES[0].prompt, NEGATIVES[1].prompt)
    assert [r.token_ids for r in first.responses] == [(10, 11, 12), (13, 14), (20,) * 5]
    assert [r.token_ids for r in second.responses] == [(15,), (30, 31)]


def test_a_prompt_of_several_sets_is_computed_once():
    apart = FakeModel()
    for priced in (NEGATIVES, GOOD, GREEDY, GREEDY):  # the before-model's own answers are asked for twice
        apart.price(priced)
    # negatives 10 + 3 + 2 | 4 + 1, good 10 + 5, greedy twice 10 + 2 | 4 + 2
    assert apart.num_tokens == 20 + 15 + 2 * 18 == 71

    together = FakeModel()
    PriceBook.of([*NEGATIVES, *GOOD, *GREEDY, *GREEDY], together.price)
    assert len(together.calls) == 1
    assert together.num_tokens == (10 + 3 + 2 + 5) + (4 + 1 + 2) == 27


def test_every_set_gets_its_own_log_probs_back():
    book = PriceBook.of([*NEGATIVES, *GOOD, *GREEDY], FakeModel().price)
    for priced in (NEGATIVES, GOOD, GREEDY):
        assert book.logprobs(priced) == FakeModel().price(priced)
    assert book.logprobs([]) == []


def test_what_was_not_priced_is_an_error_and_not_a_zero():
    book = PriceBook.of(NEGATIVES, FakeModel().price)
    with pytest.raises(KeyError):
        book.logprobs([make_group(Q, (10, 11, 12))])  # priced, but under another prompt


token_ids = st.lists(st.integers(0, 3), max_size=3)
groups = st.lists(st.tuples(token_ids, st.lists(token_ids, max_size=4)), max_size=8).map(
    lambda rows: [make_group(prompt, *responses, order_id=n) for n, (prompt, responses) in enumerate(rows)]
)


@given(groups)
def test_merging_and_looking_up_is_the_same_as_pricing_group_by_group(some):
    model = FakeModel()
    assert PriceBook.of(some, model.price).logprobs(some) == FakeModel().price(some)
    [merged] = model.calls
    prompts = [group.prompt.token_ids for group in merged]
    assert len(set(prompts)) == len(prompts)
    for group in merged:
        answers = [response.token_ids for response in group.responses]
        assert len(set(answers)) == len(answers)
    asked = {(group.prompt.token_ids, r.token_ids) for group in some for r in group.responses}
    assert asked == {(group.prompt.token_ids, r.token_ids) for group in merged for r in group.responses}

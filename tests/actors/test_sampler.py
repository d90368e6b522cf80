"""From orders to groups: what stays of the answers, and what they cost."""

import itertools

from negalign_ray.actors.sampler import answer_orders
from negalign_ray.records import Generation, Group, Role, SamplingSpec
from tests.loops.fakes import make_factory


class Engine:
    """Writes the given answers in turn; its weights never change."""

    def __init__(self, *answers: tuple[tuple[int, ...], str]) -> None:
        self._answers = itertools.cycle(answers)

    def generate(self, requests, spec):
        assert spec == SPEC
        return [Generation(ids, (-1.0,) * len(ids), "stop", text) for ids, text in self._next(len(requests))]

    def _next(self, num: int):
        return itertools.islice(self._answers, num)

    def load_weights(self, bundle):
        raise NotImplementedError

    def checksum(self):
        return 0


SPEC = SamplingSpec(max_new_tokens=4)
YES, AGAIN, EMPTY = ((5, 6, 2), "yes"), ((5, 6, 2), "yes"), ((8, 2), " ")


def answered(*answers, num_orders: int = 1, earlier: Group | None = None):
    factory = make_factory(num_samples=len(answers) // num_orders)
    orders = [factory.next_order() for _ in range(num_orders)]
    carried = [earlier] if earlier else []
    return answer_orders(Engine(*answers), orders, carried, spec=SPEC, version=3, max_candidates=9)


def test_empty_and_repeated_answers_leave_the_group_but_their_tokens_were_written():
    [group], num_tokens = answered(YES, AGAIN, EMPTY)
    assert [response.token_ids for response in group.samples] == [(5, 6, 2)]
    assert num_tokens == 3 + 3 + 2


def test_an_answer_that_is_a_human_negative_word_for_word_leaves_the_group():
    negative = make_factory(num_samples=1).next_order().prompt.responses[0]
    assert negative.role is Role.NEGATIVE
    [group], _ = answered((negative.token_ids, negative.text), YES)
    assert [response.token_ids for response in group.samples] == [(5, 6, 2)]
    assert negative in group.responses


def test_answers_go_to_their_own_order_behind_its_human_responses():
    groups, num_tokens = answered(YES, ((7, 2), "no"), ((9,), "so"), EMPTY, num_orders=2)
    assert [[response.text for response in group.samples] for group in groups] == [["yes", "no"], ["so"]]
    assert all(group.responses[0].role is Role.NEGATIVE for group in groups)
    assert num_tokens == 3 + 2 + 1 + 2


def test_carried_answers_cost_nothing_again():
    [earlier], _ = answered(((7, 2), "no"))
    [group], num_tokens = answered(YES, earlier=earlier)
    assert [(response.text, response.carried) for response in group.samples] == [("yes", False), ("no", True)]
    assert num_tokens == 3

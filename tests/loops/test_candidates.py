"""Candidate lists: the newest answers of a prompt take part again, and nothing else is kept."""

import weakref
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from negalign_ray.loops.buffer import Handle
from negalign_ray.loops.candidates import CandidateLists, with_candidates
from negalign_ray.records import Group, GroupCard, Polarity, Response, Role
from tests.loops.fakes import make_factory, make_prompt


def own(*token_ids: int, **more) -> Response:
    return Response(role=Role.SAMPLE, token_ids=token_ids, text=f"answer {token_ids}", finish_reason="stop", **more)


def group(*samples: Response, order_id: int = 0) -> Group:
    prompt = make_prompt(7)
    return Group(order_id, prompt, (*prompt.responses, *samples))


def ids(group: Group) -> list[int]:
    return [sample.token_ids[0] for sample in group.samples]


def test_three_rounds_keep_the_newest_four_answers():
    first = with_candidates(group(own(1), own(2)), None, max_candidates=4)
    second = with_candidates(group(own(3), own(4)), first, max_candidates=4)
    third = with_candidates(group(own(5)), second, max_candidates=4)
    assert [ids(each) for each in (first, second, third)] == [[1, 2], [3, 4, 1, 2], [5, 3, 4, 1]]
    assert [sample.carried for sample in third.samples] == [False, True, True, True]
    assert [response.role for response in third.responses].count(Role.NEGATIVE) == 1, "human answers do not pile up"


def test_a_carried_answer_keeps_what_is_true_for_ever_and_loses_the_log_probs_of_its_time():
    was = own(
        1,
        instruction="rude",
        polarity=Polarity.NEGATIVE,
        weight_version=3,
        rewards={"harm": 0.9},
        context_ids=(5, 6),
        sampler_logprobs=(-1.0,),
    )
    (_, found) = with_candidates(group(own(2)), group(was), max_candidates=8).samples
    assert found == replace(was, carried=True, context_ids=None, sampler_logprobs=None)
    assert found.rewards == {"harm": 0.9}


def test_an_answer_that_repeats_a_fresh_one_is_dropped_in_favour_of_the_fresh_one():
    kept = with_candidates(group(own(1), own(2)), group(own(2), own(3)), max_candidates=8)
    assert ids(kept) == [1, 2, 3]
    assert [sample.carried for sample in kept.samples] == [False, False, True]


def test_fresh_answers_stay_even_when_they_alone_are_more_than_the_list_holds():
    assert ids(with_candidates(group(own(1), own(2), own(3)), group(own(4)), max_candidates=2)) == [1, 2, 3]


@given(rounds=st.lists(st.lists(st.integers(0, 9), max_size=4, unique=True), max_size=8), limit=st.integers(1, 6))
def test_a_list_never_exceeds_its_bound_or_repeats_an_answer_and_is_newest_first(rounds, limit):
    last, age = None, {}
    for number, fresh in enumerate(rounds):
        last = with_candidates(group(*(own(token) for token in fresh)), last, max_candidates=limit)
        found = ids(last)
        assert found[: len(fresh)] == fresh
        assert len(found) == len(set(found)) <= max(limit, len(fresh))
        age |= dict.fromkeys(fresh, number)
        written = [age[token] for token in found]
        assert written == sorted(written, reverse=True)


class Payload:
    """Stands for a group in the object store: one that nothing refers to any more is freed."""


def remember(lists: CandidateLists, prompt_id: int) -> weakref.ref:
    payload = Payload()
    lists.remember([(prompt_id, Handle(payload, GroupCard(0, None, 1, (), prompt_id=prompt_id)))])
    return weakref.ref(payload)


def test_only_the_last_group_of_a_prompt_is_held():
    lists = CandidateLists(max_lists=5)
    first, second = remember(lists, 1), remember(lists, 1)
    assert first() is None
    order = replace(make_factory().next_order(), prompt=make_prompt(1))
    assert lists.attach_to(order).earlier.ref is second()
    assert lists.attach_to(replace(order, prompt=make_prompt(2))).earlier is None


def test_beyond_the_bound_the_prompt_that_was_longest_not_pulled_is_forgotten():
    lists = CandidateLists(max_lists=2)
    held = {prompt_id: remember(lists, prompt_id) for prompt_id in (1, 2)}
    held[1] = remember(lists, 1)
    held[3] = remember(lists, 3)
    assert len(lists) == 2
    assert {prompt_id for prompt_id, payload in held.items() if payload() is not None} == {1, 3}

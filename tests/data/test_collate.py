"""Shared-prefix rows and the split of a step over ranks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from negalign_ray.data.collate import dummy_rows, pack_rows, share_of
from negalign_ray.errors import DataError
from negalign_ray.records import Group, Prompt, Response, Role


def make_group(prompt, *responses, order_id=0):
    record = Prompt(prompt_id=order_id, text="", messages=(), token_ids=tuple(prompt), responses=())
    return Group(order_id, record, tuple(Response(Role.SAMPLE, tuple(ids), text="") for ids in responses))


def test_two_answers_share_one_row_and_do_not_see_each_other():
    rows = pack_rows([make_group([10, 11], [20, 21], [30, 31, 32])], max_row_tokens=16)

    assert rows.input_ids_S.tolist() == [10, 11, 30, 31, 32, 20, 21]  # the longer answer is placed first
    assert rows.position_ids_S.tolist() == [0, 1, 2, 3, 4, 2, 3]
    assert [mask.int().tolist() for mask in rows.masks_TT] == [
        [
            [1, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 1, 0, 0],
            [1, 1, 0, 0, 0, 1, 0],
            [1, 1, 0, 0, 0, 1, 1],
        ]
    ]
    assert rows.source_P.tolist() == [1, 2, 3, 1, 5]  # both answers start from the prompt's last token
    assert rows.target_P.tolist() == [30, 31, 32, 20, 21]
    assert rows.response_P.tolist() == [1, 1, 1, 0, 0]
    assert (rows.num_responses, rows.num_tokens, rows.max_position) == (2, 7, 4)


def test_answers_that_do_not_fit_go_into_further_rows_with_the_prompt_repeated():
    # 2 prompt tokens leave room for 5 of 8 answer tokens: 3 + 2, then 2 + 1.
    rows = pack_rows([make_group([1, 2], [3] * 3, [4] * 2, [5] * 2, [6])], max_row_tokens=7)
    assert rows.input_ids_S.tolist() == [*(1, 2, 3, 3, 3, 4, 4), *(1, 2, 5, 5, 6)]
    assert [len(mask) for mask in rows.masks_TT] == [7, 5]
    assert rows.source_P.tolist() == [*(1, 2, 3, 1, 5), *(8, 9, 8)]
    assert rows.position_ids_S.tolist() == [*(0, 1, 2, 3, 4, 2, 3), *(0, 1, 2, 3, 2)]


def test_rows_of_several_groups_lie_end_to_end_without_padding():
    rows = pack_rows([make_group([1], [2, 3, 4]), make_group([5], [6])], max_row_tokens=8)
    assert rows.input_ids_S.tolist() == [1, 2, 3, 4, 5, 6]
    assert [len(mask) for mask in rows.masks_TT] == [4, 2]
    assert rows.response_P.tolist() == [0, 0, 0, 1]


def test_an_answer_longer_than_a_row_gets_a_row_of_its_own():
    rows = pack_rows([make_group([1, 2], [3] * 10, [4])], max_row_tokens=6)
    assert [len(mask) for mask in rows.masks_TT] == [12, 3]


def test_an_empty_answer_takes_no_position_and_keeps_its_index():
    rows = pack_rows([make_group([1, 2], [], [3])], max_row_tokens=6)
    assert rows.num_responses == 2
    assert rows.response_P.tolist() == [1]


def test_an_empty_prompt_is_refused_because_nothing_predicts_the_first_token():
    with pytest.raises(DataError, match="prompt 7 has no tokens"):
        pack_rows([make_group([], [1], order_id=7)], max_row_tokens=6)


def test_the_dummy_row_predicts_one_token():
    rows = dummy_rows()
    assert (rows.num_tokens, rows.target_P.tolist(), rows.num_responses) == (2, [0], 1)


GROUPS = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(0, 9), min_size=1, max_size=6)), min_size=1, max_size=5
)


@settings(deadline=None)  # the machine may be busy
@given(GROUPS, st.integers(4, 20))
def test_every_response_token_is_predicted_once_from_its_own_prefix(shapes, max_row_tokens):
    groups, token = [], 0
    for prompt_length, lengths in shapes:  # every token of the batch is distinct, so that it names its origin
        ids = iter(range(token + 1, token + 1 + prompt_length + sum(lengths)))
        token += prompt_length + sum(lengths)
        prompt = [next(ids) for _ in range(prompt_length)]
        groups.append(make_group(prompt, *([next(ids) for _ in range(length)] for length in lengths)))
    rows = pack_rows(groups, max_row_tokens=max_row_tokens)

    expected = [(group, response) for group in groups for response in group.responses]
    seen = {n: [] for n in range(len(expected))}
    visible_SS = torch.block_diag(*rows.masks_TT).bool()
    for source, target, n in zip(rows.source_P, rows.target_P, rows.response_P.tolist(), strict=True):
        prefix = rows.input_ids_S[visible_SS[source]].tolist()
        group, response = expected[n]
        assert prefix == [*group.prompt.token_ids, *response.token_ids[: len(seen[n])]]
        assert rows.position_ids_S[visible_SS[source]].tolist() == list(range(len(prefix)))
        seen[n].append(target.item())
    assert [tuple(tokens) for tokens in seen.values()] == [response.token_ids for _, response in expected]
    assert bool(visible_SS.diagonal().all())


def test_a_step_is_split_by_tokens_into_micro_batches_of_whole_groups():
    # Longest first: 5 to rank 0, 4 to rank 1, 3 to rank 1 (load 7), 3 to rank 0 (load 8).
    plan = [share_of([5, 4, 3, 3], rank=rank, world_size=2, micro_batch_tokens=6) for rank in range(2)]
    assert plan == [[[0], [3]], [[1], [2]]]


def test_a_rank_without_groups_gets_as_many_empty_micro_batches_as_the_others():
    assert share_of([9, 9, 2], rank=3, world_size=4, micro_batch_tokens=4) == [[]]
    assert share_of([3, 3], rank=0, world_size=1, micro_batch_tokens=4) == [[0], [1]]


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 5), st.integers(1, 100))
def test_every_group_is_trained_once_within_the_budget_and_all_ranks_run_equally_many_micro_batches(
    tokens, world_size, budget
):
    plans = [share_of(tokens, rank=r, world_size=world_size, micro_batch_tokens=budget) for r in range(world_size)]
    assert sorted(i for plan in plans for batch in plan for i in batch) == list(range(len(tokens)))
    assert len({len(plan) for plan in plans}) == 1
    for plan in plans:
        for batch in plan:
            assert len(batch) == 1 or sum(tokens[i] for i in batch) <= budget
    loads = [sum(tokens[i] for batch in plan for i in batch) for plan in plans]
    assert max(loads) - min(loads) <= max(tokens)  # the greedy's guarantee
    assert plans[0] == share_of(tuple(tokens), rank=0, world_size=world_size, micro_batch_tokens=budget)

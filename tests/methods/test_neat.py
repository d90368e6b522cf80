"""NEAT: the invariants N1-N6 of the method, hand-computed values, and what takes no part."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from negalign_ray.config import NEATConfig
from negalign_ray.methods import neat
from negalign_ray.records import Polarity, Role

from .cases import Row, gradient, logprobs, metric, negative, positive, run, sample, tensors, value

PLAIN = NEATConfig()  # lambda = 1
RANK_ONLY = NEATConfig(ft_weight=0)
quick = settings(max_examples=50, deadline=None)
# Pairs (nlp, reward): few values of each, so that ties of either kind are drawn.
scored = st.tuples(st.sampled_from([-4.0, -2.5, -1.0, -0.5]), st.sampled_from([-1.0, 0.0, 0.3, 2.0]))
some_scored = st.lists(scored, min_size=1, max_size=6)


def rows_of(pairs: list[tuple[float, float]]) -> list[Row]:
    return [sample(nlp, reward=reward) for nlp, reward in pairs]


def asked(polarity: Polarity, *, nlp: float = -1.0, reward: float) -> Row:
    return sample(nlp, reward=reward, polarity=polarity)


def violated(pairs: list[tuple[float, float]]) -> list[tuple[int, int]]:
    """(worse, better) by index, one by one."""
    return [
        (worse, better)
        for worse, better in itertools.permutations(range(len(pairs)), 2)
        if pairs[worse][1] < pairs[better][1] and pairs[worse][0] > pairs[better][0]
    ]


# --- values worked out by hand -----------------------------------------------------------------------------------


def test_a_value_from_the_docstring():
    rows = [sample(-2, reward=0.1), sample(-3, reward=0.5), sample(-1, reward=0.9)]
    assert value("neat", rows, PLAIN) == 2.0  # 1 for the first two, which are the wrong way round, and 1 for the best
    assert metric("neat", "rank_nats", rows) == 1.0
    assert metric("neat", "best_token_nll_nats", rows) == 1.0
    assert metric("neat", "ranked_pairs_frac", rows) == pytest.approx(2 / 3)


def test_human_and_own_answers_are_one_list_and_are_compared_per_token():
    rows = [
        Row(Role.NEGATIVE, -20, length=20, reward=-1),  # nlp -1, worst and likeliest
        Row(Role.POSITIVE, -60, length=30, reward=1),  # nlp -2
        Row(Role.SAMPLE, -12, length=4, reward=2),  # nlp -3, best and least likely
    ]
    # violated: negative over positive by 1, negative over sample by 2, positive over sample by 1; the best costs 3
    assert value("neat", rows, NEATConfig(ft_weight=0.5)) == pytest.approx(1 + 2 + 1 + 0.5 * 3)


def test_lambda_weighs_the_language_modelling_term():
    rows = rows_of([(-2, 0), (-3, 1)])
    assert [value("neat", rows, NEATConfig(ft_weight=weight)) for weight in (0, 1, 2)] == [1, 4, 7]


def test_equal_rewards_give_no_pair_and_the_best_share_the_second_term():
    rows = rows_of([(-1, 5), (-3, 5)])
    assert value("neat", rows, PLAIN) == 2.0  # mean of 1 and 3
    assert gradient("neat", tensors([rows]), PLAIN).tolist() == [[-0.5, -0.5]]
    assert math.isnan(metric("neat", "rank_nats", rows))


def test_an_answer_without_a_reward_takes_no_part():
    rows = rows_of([(-2, 0), (-3, 1)])
    with_unscored = [*rows, sample(-0.1), negative(-0.2), positive(-9)]
    assert value("neat", with_unscored, PLAIN) == value("neat", rows, PLAIN)
    assert (gradient("neat", tensors([with_unscored]), PLAIN)[0, 2:] == 0).all()


@pytest.mark.parametrize("rows", [[], [negative(-10)], [sample(-3), positive(-3)]])
def test_a_group_without_any_reward_has_no_loss_gradient_or_metrics(rows):
    groups = tensors([rows, rows_of([(-2, 0), (-3, 1)])])
    out = neat.loss(groups, PLAIN)
    assert out.loss_G.tolist() == [0, 4]
    assert (gradient("neat", groups)[0] == 0).all()
    assert all(values_G[0].isnan() for values_G in out.metrics_G.values())


def test_negatives_alone_are_enough_data():
    rows = [negative(-1, reward=-3), sample(-2, reward=0)]
    assert value("neat", rows, RANK_ONLY) == 1.0


# --- N1 to N6 ------------------------------------------------------------------------------------------------------


@quick
@given(pairs=some_scored)
def test_n1_the_ranking_term_is_zero_exactly_when_the_order_agrees_with_the_rewards(pairs):
    assert (value("neat", rows_of(pairs), RANK_ONLY) == 0) == (not violated(pairs))


@quick
@given(pairs=some_scored)
def test_n2_every_violated_pair_lowers_the_worse_and_raises_the_better_answer_by_one(pairs):
    expected = [0.0] * len(pairs)
    for worse, better in violated(pairs):
        expected[worse] += 1
        expected[better] -= 1
    found = gradient("neat", tensors([rows_of(pairs)]), RANK_ONLY)[0]
    assert found.tolist() == expected
    assert found.sum() == 0


def test_n2_the_gradient_is_spread_over_the_tokens_of_an_answer():
    rows = [Row(Role.SAMPLE, -4, length=4, reward=0), Row(Role.SAMPLE, -20, length=10, reward=1)]
    assert gradient("neat", tensors([rows]), RANK_ONLY)[0].tolist() == pytest.approx([1 / 4, -1 / 10])


@quick
@given(pairs=some_scored)
def test_n3_only_the_order_of_the_rewards_matters(pairs):
    bent = [(nlp, math.exp(3 * reward) - 100) for nlp, reward in pairs]
    assert value("neat", rows_of(bent), PLAIN) == value("neat", rows_of(pairs), PLAIN)


@quick
@given(pairs=some_scored)
def test_n4_a_worst_answer_that_is_least_likely_already_contributes_nothing(pairs):
    rows = rows_of(pairs)
    with_worst = [*rows, negative(-1000, reward=-1000)]
    assert value("neat", with_worst, PLAIN) == value("neat", rows, PLAIN)
    assert gradient("neat", tensors([with_worst]), PLAIN)[0, -1] == 0
    assert metric("neat", "active_negative_pairs_frac", with_worst) == 0


def test_n4_the_share_of_active_negative_pairs_is_logged():
    rows = [
        negative(-2, reward=-5),  # worse than the other three, likelier than the last: 1 of 3 active
        asked(Polarity.NEGATIVE, nlp=-1, reward=-1),  # worse than two, likelier than one: 1 of 2
        asked(Polarity.POSITIVE, nlp=-0.5, reward=1),  # its pair with the last is no negative's
        sample(-3, reward=4),
    ]
    assert metric("neat", "active_negative_pairs_frac", rows) == pytest.approx(2 / 5)
    assert metric("neat", "ranked_pairs_frac", rows) == pytest.approx(3 / 6)
    assert math.isnan(metric("neat", "active_negative_pairs_frac", rows[2:])), "no negative, no share"


@quick
@given(pairs=some_scored, lengths=st.lists(st.integers(1, 60), min_size=6, max_size=6))
def test_n5_answers_of_twice_the_length_at_the_same_token_mean_change_nothing(pairs, lengths):
    def rows(factor: int) -> list[Row]:
        return [
            Row(Role.SAMPLE, factor * length * nlp, length=factor * length, reward=reward)
            for (nlp, reward), length in zip(pairs, lengths, strict=False)
        ]

    assert value("neat", rows(2), PLAIN) == value("neat", rows(1), PLAIN)


@quick
@given(better=logprobs, worse=logprobs, length=st.integers(1, 60), other=st.integers(1, 60))
def test_n6_two_answers_without_the_second_term_are_one_hinge(better, worse, length, other):
    rows = [Row(Role.POSITIVE, better, length=length, reward=1), Row(Role.NEGATIVE, worse, length=other, reward=0)]
    expected = max(0.0, worse / other - better / length)
    assert value("neat", rows, RANK_ONLY) == pytest.approx(expected, rel=1e-12, abs=1e-12)


# --- metrics -------------------------------------------------------------------------------------------------------


def test_agreement_counts_pairs_of_a_bad_and_a_good_instruction_whose_bad_one_really_scores_lower():
    good = [asked(Polarity.POSITIVE, reward=1), asked(Polarity.POSITIVE, reward=3)]
    bad = [asked(Polarity.NEGATIVE, reward=2), asked(Polarity.NEGATIVE, reward=1), asked(Polarity.NEGATIVE, reward=0)]
    # 2 is below 3 only; 1 is below 3, and ties with 1; 0 is below both: 1 + 1 + 2 of 6
    rows = [*good, *bad, negative(-1, reward=-9), sample(-1, reward=9)]
    assert metric("neat", "negative_prompt_agreement_frac", rows) == pytest.approx(4 / 6)
    assert math.isnan(metric("neat", "negative_prompt_agreement_frac", good)), "one kind alone cannot agree"


def test_agreement_leaves_answers_of_older_policies_out_as_the_rewards_by_origin_do():
    now = [asked(Polarity.POSITIVE, reward=1), asked(Polarity.NEGATIVE, reward=0)]
    earlier = [replace(asked(Polarity.POSITIVE, reward=-5), carried=True, lp=-0.5)]  # below both, and likelier
    assert metric("neat", "negative_prompt_agreement_frac", [*now, *earlier]) == 1.0
    assert value("neat", [*now, *earlier], PLAIN) != value("neat", now, PLAIN), "the loss ranks them"


def test_metrics_carry_no_gradient():
    metrics_G = run("neat", [rows_of([(-2, 0), (-3, 1)])]).metrics_G
    assert not any(values_G.requires_grad for values_G in metrics_G.values())


@quick
@given(pairs=some_scored)
def test_float32_agrees_with_float64(pairs):
    assume(value("neat", rows_of(pairs), PLAIN) > 1e-6)
    in_float32 = neat.loss(tensors([rows_of(pairs)], dtype=torch.float32), PLAIN).loss_G.item()
    assert in_float32 == pytest.approx(value("neat", rows_of(pairs), PLAIN), rel=1e-5)

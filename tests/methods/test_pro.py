"""PRO: the formula by hand and by loops, its limits and its numerics."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from negalign_ray.config import PROConfig
from negalign_ray.methods import pro
from negalign_ray.records import Role

from .cases import Row, gradient, metric, tensors, value

RANK_ONLY = PROConfig(sft_weight=0.0)
quick = settings(max_examples=50, deadline=None)


def candidate(p: float, reward: float, *, length: int = 1) -> Row:
    """A response with log-prob `p` per token."""
    return Row(Role.SAMPLE, p * length, length=length, reward=reward)


def formula(rows, config: PROConfig) -> float:
    """As METHODS writes it: loops, exp and log, no care for overflow."""
    rows = sorted(rows, key=lambda row: -row.reward)
    n, p, r = len(rows), [row.lp / row.length for row in rows], [row.reward for row in rows]
    total = 0.0
    for k in range(n - 1):
        largest = max(r[k] - r[j] for j in range(k + 1, n))
        others = sum(math.exp(p[j] * (r[k] - r[j])) for j in range(k + 1, n))
        total += math.log(math.exp(p[k] * largest) + others) - p[k] * largest
    return total + config.sft_weight * (n - 1) ** 2 * -rows[0].lp


def test_the_example_of_the_docstring():
    assert value("pro", [candidate(-1, 2), candidate(-2, 1)], RANK_ONLY) == pytest.approx(0.3133, abs=5e-5)


def test_two_candidates_are_a_sigmoid_of_the_gap_times_the_reward_gap():
    rows = [candidate(-1, 3), candidate(-2, 1)]
    assert value("pro", rows, RANK_ONLY) == pytest.approx(math.log1p(math.exp(-2)))
    w = 1 / (1 + math.exp(2))
    assert gradient("pro", tensors([rows]), RANK_ONLY)[0].tolist() == pytest.approx([-2 * w, 2 * w])


def test_the_sft_term_is_the_summed_log_prob_of_the_best_times_lam_and_n_minus_1_squared():
    rows = [candidate(-1, 0, length=4), candidate(-1, 2, length=6), candidate(-1, 1)]
    difference = value("pro", rows, PROConfig(sft_weight=0.05)) - value("pro", rows, RANK_ONLY)
    assert difference == pytest.approx(0.05 * 4 * 6)


quarters = st.integers(-20, 20).map(lambda number: number / 4)  # they stay apart when all are shifted
rows_of_any_length = st.lists(
    st.builds(candidate, p=st.floats(-5, 0), reward=quarters, length=st.integers(1, 20)),
    min_size=1,
    max_size=5,
    unique_by=lambda row: row.reward,
)


@quick
@given(rows=rows_of_any_length)
def test_it_is_the_formula_for_any_number_of_candidates(rows):
    assert value("pro", rows, PROConfig()) == pytest.approx(formula(rows, PROConfig()), rel=1e-9, abs=1e-9)


@quick
@given(rows=rows_of_any_length, shift=st.integers(-100, 100))
def test_only_differences_of_rewards_matter(rows, shift):
    moved = [Row(row.role, row.lp, length=row.length, reward=row.reward + shift) for row in rows]
    assert value("pro", moved, RANK_ONLY) == pytest.approx(value("pro", rows, RANK_ONLY))


def test_equal_rewards_cost_a_constant_without_gradient():
    groups = tensors([[candidate(-1, 2), candidate(-7, 2)]])
    assert pro.loss(groups, RANK_ONLY).loss_G.item() == pytest.approx(math.log(2))
    assert gradient("pro", groups, RANK_ONLY)[0].tolist() == [0, 0]


@pytest.mark.parametrize("rows", [[], [candidate(-3, 1)], [candidate(-3, 1), candidate(-2, math.nan)]])
def test_fewer_than_two_rewards_have_no_loss_gradient_or_ranking(rows):
    groups = tensors([rows, [candidate(-1, 2), candidate(-2, 1)]])
    assert pro.loss(groups, PROConfig()).loss_G[0].item() == 0
    assert (gradient("pro", groups)[0] == 0).all()
    assert math.isnan(metric("pro", "rank_nats", rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("better", "worse", "expected"), [(-1e4, -1.0, 5e4 - 5), (-1.0, -1e4, 0.0)])
def test_huge_log_probs_and_gaps_stay_finite(dtype, better, worse, expected):
    groups = tensors([[candidate(better, 5), candidate(worse, 0)]], dtype=dtype)
    assert pro.loss(groups, RANK_ONLY).loss_G.item() == pytest.approx(expected)
    assert gradient("pro", groups, RANK_ONLY).isfinite().all()

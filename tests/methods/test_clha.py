"""CLHA: the official formula by hand, invariants C1 to C6, whole-batch sums, groups of different size."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from negalign_ray.config import CLHAConfig
from negalign_ray.methods import clha
from negalign_ray.records import Role

from .cases import Row, any_groups, gradient, metric, run, tensors, value

CONFIG = CLHAConfig()  # m = 3, lam = 0.05
RANK_ONLY = CLHAConfig(sft_weight=0.0)
quick = settings(max_examples=50, deadline=None)


def candidate(p: float, reward: float, *, length: int = 1, role: Role = Role.SAMPLE) -> Row:
    """A response with log-prob `p` per token."""
    return Row(role, p * length, length=length, reward=reward)


def official(rows, config: CLHAConfig) -> float:
    """The loss of one batch of equally long lists, written as the formula stands: loops, no tensors."""
    lists = [sorted(group, key=lambda row: -row.reward) for group in rows]
    n = len(lists[0])
    rank = 0.0
    for i in range(1, n):
        total = count = 0.0
        for group in lists:
            for k in range(n - i):
                a, b = group[k], group[k + i]
                if abs(a.reward - b.reward) > config.margin:
                    total += max(0.0, config.margin * i - (a.lp / a.length - b.lp / b.length))
                    count += 1
        rank += total / count if count else 0.0
    sft = sum(-group[0].lp for group in lists if group[0].reward > 0) / len(lists)
    return rank + config.sft_weight * (n - 1) ** 2 * sft


def test_the_example_of_the_docstring():
    rows = [candidate(-1, 4, length=2), candidate(-2, 0, length=2)]
    assert value("clha", rows, CONFIG) == pytest.approx(2.1)


@pytest.mark.parametrize("gap", [0.0, 1.0, 3.0])
def test_c1_a_gap_of_at_most_the_margin_leaves_only_sft(gap):
    rows = [candidate(-2, 5.0, length=4), candidate(-1, 5.0 - gap)]
    assert value("clha", rows, CONFIG) == pytest.approx(0.05 * 8), "of equal rewards the first is the best"
    assert metric("clha", "eligible_pairs_frac", rows, CONFIG) == 0


@pytest.mark.parametrize(("log_prob_gap", "expected"), [(1.0, 2.0), (-1.0, 4.0), (3.0, 0.0), (5.0, 0.0)])
def test_c2_a_wider_gap_costs_what_is_missing_to_the_margin(log_prob_gap, expected):
    rows = [candidate(-2, 4), candidate(-2 - log_prob_gap, 0)]
    assert value("clha", rows, RANK_ONLY) == pytest.approx(expected)


@pytest.mark.parametrize("num_pairs", [1, 3])
def test_c3_an_active_pair_pulls_by_one_over_the_number_of_pairs_in_the_batch(num_pairs):
    groups = tensors([[candidate(-2, 4), candidate(-2, 0)]] * num_pairs)
    found = gradient("clha", groups, RANK_ONLY) / num_pairs  # the learner divides by the number of groups
    assert found.tolist() == [pytest.approx([-1 / num_pairs, 1 / num_pairs])] * num_pairs


def test_c3_a_pair_outside_the_hinge_has_no_gradient_but_counts():
    groups = tensors([[candidate(-2, 4), candidate(-2, 0)], [candidate(-1, 4), candidate(-9, 0)]])
    assert (gradient("clha", groups, RANK_ONLY) / 2).tolist() == [pytest.approx([-0.5, 0.5]), [0, 0]]


@pytest.mark.parametrize("best", [0.0, -2.0])
def test_c4_a_best_reward_of_at_most_0_has_no_sft_gradient_and_still_dilutes_the_mean(best):
    good, bad = [candidate(-2, 1), candidate(-3, 0)], [candidate(-2, best), candidate(-3, best - 1)]
    groups = tensors([good, bad])
    assert (gradient("clha", groups, CONFIG)[1] == 0).all()
    alone, diluted = (run("clha", rows, CONFIG).loss_G.mean().item() for rows in ([good], [good, bad]))
    assert diluted == pytest.approx(alone / 2)
    assert metric("clha", "sft_frac", bad, CONFIG) == 0


def test_c4_a_head_that_is_never_positive_needs_another_threshold():
    rows = [candidate(-2, -0.1), candidate(-3, -0.9)]  # minus a probability of harm
    assert value("clha", rows, CONFIG) == 0
    assert value("clha", rows, CLHAConfig(sft_min_reward=-0.5)) == pytest.approx(0.05 * 2)


def test_c5_unsorted_candidates_are_sorted_by_reward_whatever_the_human_label():
    rows = [candidate(-2, 0, role=Role.POSITIVE), candidate(-1, 4, role=Role.NEGATIVE), candidate(-5, 9)]
    assert value("clha", rows, CONFIG) == pytest.approx(official([rows], CONFIG))
    assert value("clha", rows[::-1], CONFIG) == pytest.approx(value("clha", rows, CONFIG))
    assert gradient("clha", tensors([rows]), CONFIG)[0].argmin() == 2, "the best is raised most"


def test_c6_three_candidates_use_twice_the_margin_at_distance_2_and_four_times_the_sft():
    rows = [candidate(-1, 10), candidate(-1, 5), candidate(-1, 0)]
    # distance 1: (3 + 3) / 2 pairs = 3; distance 2: 6 / 1 pair = 6; SFT 0.05 * 4 * 1
    assert value("clha", rows, RANK_ONLY) == pytest.approx(9.0)
    assert value("clha", rows, CONFIG) == pytest.approx(9.2)


lists_of_3 = st.lists(
    st.lists(
        st.builds(candidate, p=st.floats(-9, 0), reward=st.floats(-10, 10), length=st.integers(1, 20)),
        min_size=3,
        max_size=3,
        unique_by=lambda row: row.reward,
    ),
    min_size=1,
    max_size=5,
)


@quick
@given(rows=lists_of_3)
def test_the_mean_over_groups_is_the_official_loss(rows):
    assert run("clha", rows, CONFIG).loss_G.mean().item() == pytest.approx(official(rows, CONFIG), rel=1e-9, abs=1e-9)


@quick
@given(rows=any_groups, data=st.data())
def test_cutting_a_step_into_parts_does_not_change_its_loss(rows, data):
    whole = run("clha", rows, CONFIG).loss_G
    cut = data.draw(st.integers(0, len(rows)))
    parts = [clha.loss(tensors(part, batch=rows), CONFIG).loss_G for part in (rows[:cut], rows[cut:])]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-10, atol=1e-12)


def test_a_part_without_its_batch_is_our_own_mistake():
    with pytest.raises(AssertionError, match="whole step"):
        clha.loss(tensors([[candidate(-1, 4)], [candidate(-1, 4)]], batch=[[candidate(-1, 4)]]), CONFIG)


def test_groups_of_different_size_have_their_own_n_and_share_the_sums():
    two, three = [candidate(-1, 4), candidate(-1, 0)], [candidate(-1, 10), candidate(-1, 5), candidate(-1, 0)]
    groups = run("clha", [two, three], CONFIG).loss_G
    # distance 1 has 3 pairs of cost 3 in the batch, distance 2 one of cost 6; times 2 groups
    assert groups.tolist() == pytest.approx([2 * 3 / 3 + 0.05 * 1, 2 * 6 / 3 + 2 * 6 / 1 + 0.05 * 4])


def test_a_response_without_a_reward_is_left_out_of_sums_and_of_n():
    rows = [candidate(-1, 4), candidate(-2, 0)]
    assert value("clha", [*rows, candidate(-3, math.nan)], CONFIG) == value("clha", rows, CONFIG)
    assert value("clha", [candidate(-3, math.nan)] * 2, CONFIG) == 0


def test_metrics_by_hand():
    rows = [candidate(-1, 10), candidate(-8, 5), candidate(-4, 4)]
    metrics = {key: values_G.item() for key, values_G in run("clha", [rows], CONFIG).metrics_G.items()}
    # eligible: (10, 5) with hinge 3 - 7 < 0, and (10, 4) at distance 2 with hinge 6 - 3 = 3; (5, 4) is too close
    assert metrics == pytest.approx(
        {
            "rank_nats": 3.0,
            "sft_nats": 0.05 * 4,
            "eligible_pairs_frac": 2 / 3,
            "active_pairs_frac": 1 / 2,
            "ranked_pairs_frac": 2 / 3,
            "best_token_nll_nats": 1.0,
            "sft_frac": 1.0,
        }
    )

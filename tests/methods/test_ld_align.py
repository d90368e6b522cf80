"""LD-Align: weights from latent distances, and the invariants L1 to L6 (L2 and L3 also in the guide's tests)."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from negalign_ray.config import DPOConfig, LDAlignConfig, SPINConfig
from negalign_ray.methods import METHODS, ld_align
from negalign_ray.records import Role

from .cases import LOG2, Row, gradient, logprobs, negative, positive, run, sample, tensors, weights

NORMALISED, RAW, CONSTANT = (LDAlignConfig(weight_mode=mode) for mode in ("normalised", "raw", "constant"))
quick = settings(max_examples=50, deadline=None)
distances = st.floats(min_value=0, max_value=1000, width=32, allow_subnormal=False)


def sp(z: float) -> float:
    return math.log1p(math.exp(-z))


def pair(winner: float, loser: float, distance: float) -> list[Row]:
    return [positive(winner), sample(loser, reward=distance)]


def losses(rows, config) -> list[float]:
    return run("ld_align", rows, config).loss_G.tolist()


def test_the_loss_is_dpo_times_the_distance_over_the_mean_distance_of_the_batch():
    rows = [pair(2, -3, 3.0), pair(2, -3, 1.0)]  # mean distance 2, logit 0.5, sp(0.5) = 0.4741
    assert losses(rows, NORMALISED) == pytest.approx([1.5 * 0.474077, 0.5 * 0.474077], rel=1e-5)
    assert losses(rows, RAW) == pytest.approx([3 * 0.474077, 0.474077], rel=1e-5)


def test_weights_are_clipped_after_the_mean_is_taken():
    rows = [pair(2, -3, 9.0)] + [pair(2, -3, 1 / 9)] * 9  # mean 1, so that w = 9 is clipped to 5
    assert losses(rows, NORMALISED)[:2] == pytest.approx([5 * sp(0.5), sp(0.5) / 9])
    assert losses(rows, LDAlignConfig(max_weight=2))[0] == pytest.approx(2 * sp(0.5))
    assert losses(rows, RAW)[0] == pytest.approx(5 * sp(0.5))


@quick
@given(lps=st.lists(st.tuples(logprobs, logprobs), min_size=1, max_size=5), distance=distances, beta=weights)
def test_l1_a_constant_distance_is_plain_dpo_and_an_iteration_of_spin(lps, distance, beta):
    rows = [pair(winner, loser, distance) for winner, loser in lps]
    dpo_rows = [[positive(winner), negative(loser)] for winner, loser in lps]
    expected = run("dpo", dpo_rows, DPOConfig(beta=beta)).loss_G.tolist()
    assert losses(rows, LDAlignConfig(beta=beta)) == pytest.approx(expected, rel=1e-6)
    constant = LDAlignConfig(beta=beta, weight_mode="constant")
    assert losses([[w, sample(s.lp)] for w, s in rows], constant) == expected, "it reads no distance"
    assert run("spin", rows, SPINConfig(beta=beta)).loss_G.tolist() == expected


@quick
@given(values=st.lists(distances, min_size=2, max_size=5), scale=st.sampled_from([0.125, 3.0, 1e4]))
def test_l2_the_weights_do_not_change_when_the_latent_space_is_rescaled(values, scale):
    plain, scaled = ([pair(-1, -2, factor * value) for value in values] for factor in (1.0, scale))
    assert losses(scaled, NORMALISED) == pytest.approx(losses(plain, NORMALISED), rel=1e-9)


def test_l3_the_weights_carry_no_gradient():
    groups = tensors([pair(2, -3, 3.0), pair(2, -3, 1.0)])
    distance_GR = groups.reward_GR.clone().requires_grad_()
    loss = ld_align.loss(replace(groups, reward_GR=distance_GR), NORMALISED).loss_G.sum()
    assert torch.autograd.grad(loss, distance_GR, retain_graph=True, allow_unused=True) == (None,)
    assert torch.autograd.grad(loss, groups.logprobs_GR)[0].abs().sum() > 0


@quick
@given(values=st.lists(distances, min_size=1, max_size=5), winner=logprobs, loser=logprobs)
def test_l4_the_gradient_of_each_pair_is_that_of_dpo_times_its_weight(values, winner, loser):
    groups = tensors([pair(winner, loser, value) for value in values])
    plain = gradient("ld_align", groups, CONSTANT)
    mean = math.fsum(values) / len(values)
    for index, value in enumerate(values):
        w = min(value / mean, 5.0) if mean else 1.0
        found = gradient("ld_align", groups, NORMALISED)[index].tolist()
        assert found == pytest.approx((w * plain[index]).tolist(), rel=1e-6, abs=1e-12)


def test_l5_at_the_reference_the_loss_is_log_2_times_the_mean_weight():
    rows = [[positive(-4, ref=-4), sample(-9, ref=-9, reward=value)] for value in (1.0, 2.0, 3.0)]
    assert losses(rows, NORMALISED) == pytest.approx([LOG2 / 2, LOG2, LOG2 * 1.5])
    assert sum(losses(rows, NORMALISED)) / 3 == pytest.approx(LOG2)
    assert sum(losses(rows, RAW)) / 3 == pytest.approx(2 * LOG2)


@pytest.mark.parametrize("config", [NORMALISED, RAW])
def test_l6_distances_that_are_all_zero_fall_back_to_plain_dpo(config):
    rows = [pair(2, -3, 0.0), pair(-1, -3, 0.0)]
    assert losses(rows, config) == losses(rows, CONSTANT)


def test_the_mean_is_over_the_whole_batch_whatever_this_rank_holds():
    rows = [pair(2, -3, 3.0), pair(2, -3, 1.0)]
    alone = tensors(rows[:1], batch=rows)
    assert ld_align.loss(alone, NORMALISED).loss_G.tolist() == losses(rows, NORMALISED)[:1]


def test_several_samples_and_positives_give_the_mean_over_their_pairs():
    rows = [positive(2), positive(4), sample(-3, reward=3.0), sample(0, reward=1.0)]
    expected = (1.5 * sp(0.5) + 1.5 * sp(0.7) + 0.5 * sp(0.2) + 0.5 * sp(0.4)) / 4
    assert losses([rows], NORMALISED) == pytest.approx([expected])


def test_human_negatives_and_samples_without_a_distance_are_not_read():
    rows = pair(2, -3, 3.0)
    assert losses([[*rows, negative(-50), sample(-9)]], NORMALISED) == losses([rows], NORMALISED)


def test_metrics_by_hand():
    metrics_G = run("ld_align", [pair(2, -3, 3.0), pair(2, -3, 1.0)], NORMALISED).metrics_G
    assert {key: values[0].item() for key, values in metrics_G.items() if not values[0].isnan()} == pytest.approx(
        {
            "positive_nats": 0.2,
            "negative_nats": -0.3,
            "positive_logratio_nats": 2.0,
            "sample_logratio_nats": -3.0,
            "pair_accuracy_frac": 1.0,
            "margin_nats": 0.5,
            "weight_frac": 1 / (1 + math.exp(0.5)),
            "distance": 3.0,
            "distance_weight": 1.5,
        }
    )


def test_it_needs_good_answers_own_answers_and_references_and_no_bad_ones():
    needs = METHODS["ld_align"].needs(NORMALISED)
    assert (needs.negatives, needs.positives, needs.samples, needs.references) == (False, True, "required", True)


def test_the_reference_is_rpos():
    rows = [Row(Role.POSITIVE, -10, rpos=-12, rneg=-99), Row(Role.SAMPLE, -10, rpos=-7, rneg=50, reward=1.0)]
    assert losses([rows], NORMALISED) == pytest.approx([sp(0.5)])

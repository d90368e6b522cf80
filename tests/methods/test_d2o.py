"""D2O: the invariants D1-D7 of the method, hand-computed values, gradients and limits.

# Axes: A = answers of a tiny bandit, K = samples per group.
"""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from negalign_ray.config import D2OConfig, DPOConfig, NPOConfig
from negalign_ray.methods import d2o
from negalign_ray.methods.groups import GroupTensors
from negalign_ray.records import Role

from .cases import (
    LOG2,
    Row,
    gradient,
    logprobs,
    metric,
    negative,
    positive,
    ratios,
    run,
    sample,
    tensors,
    value,
    weights,
)

PAPER = D2OConfig()  # a = b = 0.1
quick = settings(max_examples=50, deadline=None)


def sp(z: float) -> float:
    return math.log1p(math.exp(-z))


# --- values worked out by hand -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "logit"),
    [
        ([negative(-10), sample(1), sample(-3)], 0.1 * -1 + 0.1 * 10),  # anchor: mean of 1 and -3
        ([negative(-10)] + [sample(-2)] * 11, 0.1 * -2 + 0.1 * 10),  # K = 11 equal samples count as one
        ([negative(5), sample(0)], -0.5),  # the negative became likelier
        ([negative(-40, ref=-30), sample(-12, ref=-20)], 0.8 + 1.0),
    ],
)
def test_loss_is_the_softplus_of_the_anchor_minus_the_negative_term(rows, logit):
    assert value("d2o", rows, PAPER) == pytest.approx(sp(logit), rel=1e-12)
    assert metric("d2o", "margin_nats", rows, PAPER) == pytest.approx(logit, rel=1e-12)
    assert metric("d2o", "weight_frac", rows, PAPER) == pytest.approx(1 / (1 + math.exp(logit)), rel=1e-12)


def test_a_value_from_the_docstring():
    assert value("d2o", [negative(-10), sample(1), sample(-3)], PAPER) == pytest.approx(0.3412, abs=5e-5)


def test_negatives_are_compared_with_rpos_and_samples_with_rneg():
    rows = [Row(Role.NEGATIVE, -50, rpos=-40, rneg=-7), Row(Role.SAMPLE, -30, rpos=-9, rneg=-33)]
    assert metric("d2o", "negative_logratio_nats", rows) == pytest.approx(-10)  # -50 - -40
    assert metric("d2o", "sample_logratio_nats", rows) == pytest.approx(3)  # -30 - -33
    assert value("d2o", rows, PAPER) == pytest.approx(sp(0.3 + 1.0))


def test_alpha_weighs_the_negative_and_beta_the_anchor():
    config = D2OConfig(alpha=0.5, beta=0.25)
    rows = [negative(-2), sample(4)]
    assert metric("d2o", "negative_nats", rows, config) == pytest.approx(-1.0)  # 0.5 * -2
    assert metric("d2o", "anchor_nats", rows, config) == pytest.approx(1.0)  # 0.25 * 4
    assert value("d2o", rows, config) == pytest.approx(sp(2.0))


def test_several_negatives_give_the_mean_of_their_losses():
    own = [sample(1), sample(-3)]
    apart = [value("d2o", [negative(lp), *own], PAPER) for lp in (-10, 20, 0)]
    together = value("d2o", [negative(-10), negative(20), negative(0), *own], PAPER)
    assert together == pytest.approx(sum(apart) / 3, rel=1e-12)


def test_human_positives_are_not_read():
    rows = [negative(-10), sample(1)]
    assert value("d2o", [*rows, positive(-99, ref=7)]) == value("d2o", rows)


@pytest.mark.parametrize("rows", [[], [negative(-10)], [sample(-3)], [positive(-3), sample(-3)], [negative(-1e5)]])
def test_a_group_without_a_negative_or_without_a_sample_has_no_loss_gradient_or_metrics(rows):
    groups = tensors([rows, [negative(-10), sample(1)]])
    out = d2o.loss(groups, PAPER)
    assert out.loss_G[0] == 0
    assert out.loss_G[1] > 0
    assert (gradient("d2o", groups)[0] == 0).all()
    for values_G in out.metrics_G.values():
        assert values_G[0].isnan()
        assert values_G[1].isfinite()


# --- D1 to D6 ------------------------------------------------------------------------------------------------------


@quick
@given(lp=logprobs, ref=logprobs, own=logprobs, own_ref=logprobs, weight=weights)
def test_d1_one_sample_and_equal_weights_is_dpo_with_the_sample_as_the_winner(lp, ref, own, own_ref, weight):
    by_d2o = value("d2o", [negative(lp, ref=ref), sample(own, ref=own_ref)], D2OConfig(alpha=weight, beta=weight))
    by_dpo = value("dpo", [negative(lp, ref=ref), positive(own, ref=own_ref)], DPOConfig(beta=weight))
    assert by_d2o == pytest.approx(by_dpo, rel=1e-12, abs=1e-300)


@quick
@given(lps=st.lists(logprobs, min_size=2, max_size=12), alpha=weights, beta=weights)
def test_d2_policy_equal_to_both_references_costs_log_2_exactly(lps, alpha, beta):
    rows = [negative(lps[0], ref=lps[0])] + [sample(lp, ref=lp) for lp in lps[1:]]
    assert value("d2o", rows, D2OConfig(alpha=alpha, beta=beta)) == LOG2


@quick
@given(lp=ratios, owns=st.lists(ratios, min_size=1, max_size=6), alpha=weights, beta=weights)
def test_d3_gradient_raises_every_sample_by_bw_over_k_and_lowers_the_negative_by_aw(lp, owns, alpha, beta):
    config = D2OConfig(alpha=alpha, beta=beta)
    groups = tensors([[negative(lp)] + [sample(own) for own in owns]])
    w = 1 / (1 + math.exp(beta * sum(owns) / len(owns) - alpha * lp))
    expected = torch.tensor([alpha * w] + [-beta * w / len(owns)] * len(owns), dtype=torch.float64)
    found = gradient("d2o", groups, config)[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert found[0] > 0
    assert (found[1:] < 0).all()


@quick
@given(lp=ratios, owns=st.lists(ratios, min_size=1, max_size=6), weight=weights)
def test_d4_the_loss_is_at_most_the_mean_of_its_dpo_losses_and_between_their_extremes(lp, owns, weight):
    d2o_loss = value("d2o", [negative(lp)] + [sample(own) for own in owns], D2OConfig(alpha=weight, beta=weight))
    dpo_losses = [value("dpo", [negative(lp), positive(own)], DPOConfig(beta=weight)) for own in owns]
    slack = 1e-12 * (1 + max(dpo_losses))
    assert d2o_loss <= sum(dpo_losses) / len(owns) + slack
    assert min(dpo_losses) - slack <= d2o_loss <= max(dpo_losses) + slack


@pytest.mark.parametrize(("owns", "is_equal"), [((-2, -2, -2), True), ((-1, -3, -2), False), ((-30, 26, -2), False)])
def test_d4_equality_holds_only_for_equal_log_ratios(owns, is_equal):
    d2o_loss = value("d2o", [negative(-5)] + [sample(own) for own in owns], PAPER)
    dpo_mean = sum(value("dpo", [negative(-5), positive(own)], DPOConfig(beta=0.1)) for own in owns) / 3
    assert (abs(d2o_loss - dpo_mean) < 1e-12) == is_equal
    assert d2o_loss <= dpo_mean + 1e-12


@quick
@given(lp=ratios, owns=st.lists(ratios, min_size=1, max_size=6), copies=st.integers(1, 4), data=st.data())
def test_d5_order_and_uniform_duplication_of_the_samples_do_not_matter(lp, owns, copies, data):
    shuffled = data.draw(st.permutations([sample(own) for own in owns] * copies + [negative(lp)]))
    plain = [negative(lp)] + [sample(own) for own in owns]
    assert value("d2o", shuffled) == pytest.approx(value("d2o", plain), rel=1e-9, abs=1e-12)


@quick
@given(shifts=st.lists(st.integers(-64, 64), min_size=3, max_size=3), lps=st.lists(logprobs, min_size=3, max_size=3))
def test_d5_shifting_policy_and_reference_of_one_response_together_does_not_matter(shifts, lps):
    kinds = (negative, sample, sample)
    plain = [kind(lp, ref=-9) for kind, lp in zip(kinds, lps, strict=True)]
    moved = [kind(lp + by, ref=-9 + by) for kind, lp, by in zip(kinds, lps, shifts, strict=True)]
    assert value("d2o", moved) == pytest.approx(value("d2o", plain), rel=1e-9, abs=1e-12)


@quick
@given(lp=logprobs, ref=logprobs, own=logprobs, alpha=weights)
def test_d6_without_anchor_weight_it_is_npo_times_half_of_alpha(lp, ref, own, alpha):
    by_d2o = value("d2o", [negative(lp, ref=ref), sample(own)], D2OConfig(alpha=alpha, beta=0))
    by_npo = value("npo", [negative(lp, ref=ref)], NPOConfig(beta=alpha))
    assert 2 / alpha * by_d2o == pytest.approx(by_npo, rel=1e-12)


# --- D7: a softmax bandit, its expectations enumerated exactly ------------------------------------------------------

NUM_ANSWERS = 5
BAD = 0  # the answer that humans marked
MORAL = torch.tensor([-3.0, 1.0, 2.0, 0.0, -1.0], dtype=torch.float64)  # what a moral instruction adds to the logits


def bandit() -> Tensor:
    return torch.tensor([0.7, -0.4, 0.1, 1.2, -0.9], dtype=torch.float64, requires_grad=True)


def expected_gradient(
    theta_A: Tensor, sampler_A: Tensor, ref_A: Tensor, *, num_samples: int, config: D2OConfig
) -> Tensor:
    """E[grad_theta of the loss] over all K-tuples that `sampler_A` can draw; every log-prob under the bare prompt."""
    tuples = torch.tensor(list(itertools.product(range(NUM_ANSWERS), repeat=num_samples)))  # [A^K, K]
    answers = torch.cat([torch.full((len(tuples), 1), BAD), tuples], dim=1)
    lp_GR, ref_GR = theta_A.log_softmax(0)[answers], ref_A.log_softmax(0)[answers]
    is_negative = torch.zeros_like(answers, dtype=torch.bool)
    is_negative[:, 0] = True
    groups = GroupTensors(
        logprobs_GR=lp_GR,
        complement_logprobs_GR=torch.full_like(lp_GR, float("nan")),
        lengths_GR=torch.ones_like(answers),
        rpos_logprobs_GR=ref_GR,
        rneg_logprobs_GR=ref_GR,
        is_negative_GR=is_negative,
        is_positive_GR=torch.zeros_like(is_negative),
        is_sample_GR=~is_negative,
        is_positive_sample_GR=torch.zeros_like(is_negative),
        is_negative_sample_GR=torch.zeros_like(is_negative),
        is_carried_GR=torch.zeros_like(is_negative),
        reward_GR=torch.full_like(lp_GR, float("nan")),
    )
    chance_G = sampler_A.detach().softmax(0)[tuples].prod(-1)  # samples carry no gradient
    return torch.autograd.grad((chance_G * d2o.loss(groups, config).loss_G).sum(), theta_A)[0]


def anchor_part(theta_A: Tensor, sampler_A: Tensor, ref_A: Tensor, *, num_samples: int) -> Tensor:
    """Expected gradient of the anchors alone: that of the loss, less `w a grad lp(yl)` at the starting w = 1/2."""
    bad = torch.autograd.grad(theta_A.log_softmax(0)[BAD], theta_A)[0]
    full = expected_gradient(theta_A, sampler_A, ref_A, num_samples=num_samples, config=PAPER)
    return full - 0.5 * PAPER.alpha * bad


@pytest.mark.parametrize("num_samples", [1, 2, 3])
def test_d7_on_policy_samples_under_the_same_prompt_leave_no_expected_anchor_gradient(num_samples):
    theta = bandit()
    found = anchor_part(theta, theta, theta.detach(), num_samples=num_samples)
    torch.testing.assert_close(found, torch.zeros(NUM_ANSWERS, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("num_samples", [1, 2, 3])
def test_d7_samples_written_under_a_moral_instruction_pull_the_policy_towards_it(num_samples):
    theta = bandit()
    sampler = theta + MORAL
    found = anchor_part(theta, sampler, theta.detach(), num_samples=num_samples)
    # E_q[grad lp(y)] = q - pi for a softmax, here times -w b with w = 1/2; K drops out
    torch.testing.assert_close(found, -0.05 * (sampler.softmax(0) - theta.softmax(0)).detach())
    assert found.abs().max() > 0.01
    assert found[BAD] > 0  # descending lowers the bad answer


def test_d7_away_from_the_reference_on_policy_anchors_leave_only_the_covariance_of_w_and_the_score():
    theta, ref = bandit(), torch.zeros(NUM_ANSWERS, dtype=torch.float64)
    pi, lp, ref_lp = theta.detach().softmax(0), theta.detach().log_softmax(0), ref.log_softmax(0)
    w = torch.sigmoid(-(0.1 * (lp - ref_lp) - 0.1 * (lp - ref_lp)[BAD]))  # of each possible sample, K = 1
    score_AA = torch.eye(NUM_ANSWERS, dtype=torch.float64) - pi  # row y: grad lp(y)
    covariance = ((pi * (w - (pi * w).sum())).unsqueeze(-1) * score_AA).sum(0)
    expected = -0.1 * covariance + 0.1 * (pi * w).sum() * score_AA[BAD]
    found = expected_gradient(theta, theta, ref, num_samples=1, config=PAPER)
    torch.testing.assert_close(found, expected)
    assert covariance.abs().max() < 0.1 * (theta + MORAL).softmax(0).sub(pi).abs().max()


def test_d7_anchor_and_negative_term_are_logged_apart():
    metrics_G = run("d2o", [[negative(-10), sample(1), sample(-3)]], PAPER).metrics_G
    assert {key: values.item() for key, values in metrics_G.items()} == pytest.approx(
        {
            "anchor_nats": -0.1,
            "negative_nats": -1.0,
            "margin_nats": 0.9,
            "sample_logratio_nats": -1.0,
            "negative_logratio_nats": -10.0,
            "weight_frac": 1 / (1 + math.exp(0.9)),
        }
    )
    assert not any(values.requires_grad for values in metrics_G.values())


# --- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("lp", "own", "expected", "gradients"),
    [
        (1e6, -1e6, 2e5, [0.1, -0.1]),  # logit -200,000: linear, w = 1
        (-1e6, 1e6, 0.0, [0.0, 0.0]),  # logit +200,000: solved, w = 0
        (1e30, 0.0, 1e29, [0.1, -0.1]),
    ],
)
def test_huge_logits_stay_finite_in_both_directions(dtype, lp, own, expected, gradients):
    groups = tensors([[negative(lp), sample(own)]], dtype=dtype)
    assert d2o.loss(groups, PAPER).loss_G.item() == pytest.approx(expected)
    assert gradient("d2o", groups, PAPER)[0].tolist() == pytest.approx(gradients)


@quick
@given(lps=st.lists(logprobs, min_size=3, max_size=3), refs=st.lists(logprobs, min_size=3, max_size=3))
def test_float32_agrees_with_float64(lps, refs):
    rows = [kind(lp, ref=ref) for kind, lp, ref in zip((negative, sample, sample), lps, refs, strict=True)]
    assume(value("d2o", rows, PAPER) > 1e-6)
    in_float32 = d2o.loss(tensors([rows], dtype=torch.float32), PAPER).loss_G.item()
    assert in_float32 == pytest.approx(value("d2o", rows, PAPER), rel=1e-4)

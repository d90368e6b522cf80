"""NPO: hand-computed values, gradients and limits."""

import math

import pytest
import torch
from hypothesis import given, settings

from negalign_ray.config import NPOConfig
from negalign_ray.methods import npo
from negalign_ray.records import Role

from .cases import LOG2, Row, gradient, logprobs, metric, negative, positive, run, sample, tensors, value, weights

CONFIG = NPOConfig(beta=0.1)
quick = settings(max_examples=50, deadline=None)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([negative(-5)], 9.4815),  # 20 * log(1 + exp(-0.5))
        ([negative(-30, ref=-30)], 13.8629),  # 20 * log 2
        ([negative(10)], 26.2652),  # 20 * log(1 + e)
        ([negative(-5), negative(10)], (9.4815 + 26.2652) / 2),
    ],
)
def test_loss_is_two_over_beta_times_the_softplus(rows, expected):
    assert value("npo", rows, CONFIG) == pytest.approx(expected, abs=5e-5)


@quick
@given(lp=logprobs, beta=weights)
def test_policy_equal_to_the_reference_costs_two_log_2_over_beta(lp, beta):
    assert value("npo", [negative(lp, ref=lp)], NPOConfig(beta=beta)) == pytest.approx(2 * LOG2 / beta, rel=1e-14)


@quick
@given(lp=logprobs, ref=logprobs, beta=weights)
def test_gradient_is_twice_the_weight_and_always_lowers_the_negative(lp, ref, beta):
    groups = tensors([[negative(lp, ref=ref)]])
    w = 1 / (1 + math.exp(-beta * (lp - ref)))
    found = gradient("npo", groups, NPOConfig(beta=beta)).item()
    assert found == pytest.approx(2 * w, rel=1e-9)
    assert 0 < found <= 2
    assert metric("npo", "weight_frac", [negative(lp, ref=ref)], NPOConfig(beta=beta)) == pytest.approx(w, rel=1e-9)


def test_small_beta_is_gradient_ascent():
    groups = tensors([[negative(-7)], [negative(20)], [negative(-90)]])
    found = gradient("npo", groups, NPOConfig(beta=1e-6))
    torch.testing.assert_close(found, torch.ones(3, 1, dtype=torch.float64), rtol=1e-4, atol=0)


def test_the_reference_is_rpos():
    assert metric("npo", "negative_logratio_nats", [Row(Role.NEGATIVE, -10, rpos=-4, rneg=50)]) == pytest.approx(-6)


def test_metrics_by_hand():
    metrics_G = run("npo", [[negative(-5)]], CONFIG).metrics_G
    assert {key: values.item() for key, values in metrics_G.items()} == pytest.approx(
        {"negative_nats": -0.5, "negative_logratio_nats": -5.0, "weight_frac": 1 / (1 + math.exp(0.5))}
    )


def test_positives_and_own_samples_are_not_read():
    assert value("npo", [negative(-5), positive(-9), sample(3)]) == value("npo", [negative(-5)])


@pytest.mark.parametrize("rows", [[], [positive(-3)], [sample(-3), positive(-1)]])
def test_a_group_without_a_negative_has_no_loss_gradient_or_metrics(rows):
    groups = tensors([rows, [negative(-5)]])
    out = npo.loss(groups, CONFIG)
    assert out.loss_G[0] == 0
    assert (gradient("npo", groups, CONFIG)[0] == 0).all()
    assert all(values_G[0].isnan() and values_G[1].isfinite() for values_G in out.metrics_G.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("lp", "expected", "slope"), [(1e6, 2e6, 2.0), (-1e6, 0.0, 0.0)])
def test_huge_log_ratios_stay_finite_in_both_directions(dtype, lp, expected, slope):
    groups = tensors([[negative(lp)]], dtype=dtype)
    assert npo.loss(groups, CONFIG).loss_G.item() == pytest.approx(expected)
    assert gradient("npo", groups, CONFIG).item() == pytest.approx(slope)

"""Gradient ascent and unlikelihood: hand-computed values, gradients, and what brakes them."""

import math

import pytest

from negalign_ray.config import GAConfig, UnlikelihoodConfig
from negalign_ray.methods import METHODS
from negalign_ray.records import Role

from .cases import Row, gradient, negative, positive, run, sample, tensors, value

CONFIGS = {"ga": GAConfig(), "unlikelihood": UnlikelihoodConfig()}
every_method = pytest.mark.parametrize("name", sorted(CONFIGS))


def unlikely(*probabilities: float) -> Row:
    """A negative whose tokens have these probabilities."""
    lp = sum(map(math.log, probabilities))
    return Row(Role.NEGATIVE, lp, length=len(probabilities), complement=sum(math.log1p(-p) for p in probabilities))


def test_ga_is_the_summed_log_prob_of_the_negative():
    assert value("ga", [Row(Role.NEGATIVE, -40, length=20)]) == -40


def test_ga_has_no_brake():
    assert gradient("ga", tensors([[negative(-5)], [negative(-5000)]])).tolist() == [[1], [1]]


def test_unlikelihood_is_minus_the_sum_of_the_log_complements():
    assert value("unlikelihood", [unlikely(0.5, 0.2)]) == pytest.approx(math.log(2) - math.log(0.8))


def test_unlikelihood_is_0_once_every_token_is_unlikely():
    assert value("unlikelihood", [unlikely(1e-9, 1e-9)]) == pytest.approx(2e-9)


def test_unlikelihood_trains_through_the_complements_alone():
    groups = tensors([[unlikely(0.5), positive(-3)]])
    assert gradient("unlikelihood", groups).tolist() == [[-1, 0]]


@every_method
def test_several_negatives_give_the_mean_of_their_losses(name):
    rows = [unlikely(0.5), unlikely(0.25, 0.1), unlikely(0.9)]
    assert value(name, rows) == pytest.approx(sum(value(name, [row]) for row in rows) / 3)
    assert gradient(name, tensors([rows]))[0].abs().tolist() == pytest.approx([1 / 3] * 3)


@every_method
@pytest.mark.parametrize("rows", [[], [positive(-3)], [positive(-3), sample(-2)]])
def test_a_group_without_a_negative_has_no_loss_gradient_or_metrics(name, rows):
    groups = tensors([rows, [negative(-3)]])
    out = METHODS[name].loss(groups, CONFIGS[name])
    assert out.loss_G[0].item() == 0
    assert (gradient(name, groups)[0] == 0).all()
    assert all(values_G[0].isnan() and values_G[1].isfinite() for values_G in out.metrics_G.values())


@every_method
def test_metrics_by_hand(name):
    rows = [Row(Role.NEGATIVE, -40, length=20), Row(Role.NEGATIVE, -20, length=5)]
    metrics = {key: values_G.item() for key, values_G in run(name, [rows]).metrics_G.items()}
    assert metrics == pytest.approx({"negative_nll_nats": 30.0, "negative_token_nll_nats": 3.0})

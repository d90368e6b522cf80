"""What a training curve says, on rows of metrics written by hand."""

import math

import pytest

from negalign_ray.evaluation.curves import (
    relative_spread,
    roughness,
    sampled_tokens,
    smoothed,
    steps_to_target,
    trained_tokens,
)
from negalign_ray.settings.comparison import Curve

METRIC = "learner/heldout_negative_logprob_nats"


def rows(*values):
    return [{"step": step, METRIC: value} for step, value in enumerate(values, start=1)]


def test_trailing_means_begin_with_the_first_full_window():
    assert smoothed([(1, 0.0), (2, -2.0), (3, -4.0)], window=2) == [(2, -1.0), (3, -3.0)]
    assert smoothed([(1, 0.0)], window=2) == []


@pytest.mark.parametrize(
    ("curve", "step"),
    [
        (Curve(at_most=-3.0, window=1), 3),
        (Curve(at_most=-3.0, window=2), 4),  # means of two: -0.5, -2.5, -4
        (Curve(at_most=-9.0, window=1), None),
        (Curve(at_least=0.0, window=1), 1),
        (Curve(window=1), None),
        (Curve(at_most=-3.0, since_start=False), 1),
    ],
)
def test_the_target_is_reached_by_the_smoothed_curve_on_its_side(curve, step):
    assert steps_to_target(rows(-5.0, -6.0, -9.0, -9.0), curve) == step


def test_a_metric_that_was_never_logged_reaches_nothing_and_has_no_roughness():
    assert steps_to_target([{"step": 1}], Curve(at_most=0.0)) is None
    assert roughness([{"step": 1}, {"step": 2, METRIC: None}], METRIC) is None


def test_a_straight_line_is_smooth_however_steep_and_zigzags_are_not():
    assert roughness(rows(0.0, -5.0, -10.0, -15.0), METRIC) == 0.0
    assert roughness(rows(0.0, -1.0, -3.0, -4.0), METRIC) == pytest.approx(math.sqrt(1 / 3))


def test_the_spread_is_relative_to_the_mean():
    assert relative_spread(rows(1.0, 3.0), METRIC) == pytest.approx(math.sqrt(2) / 2)
    assert relative_spread(rows(1.0), METRIC) is None


def test_tokens_are_summed_over_the_steps_that_have_them():
    sampled = [{"step": 1, "sampler/tokens_per_s": 10.0, "sampler/busy_s": 2.0, "learner/tokens": 70}, {"step": 2}]
    assert sampled_tokens(sampled) == 20
    assert trained_tokens(sampled) == 70
    assert sampled_tokens([]) == 0

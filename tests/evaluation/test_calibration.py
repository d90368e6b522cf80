"""Reliability, calibration error and temperature, with numbers worked out by hand."""

import numpy as np
import pytest

from negalign_ray.evaluation.calibration import (
    expected_calibration_error,
    fit_temperature,
    reliability,
    scaled_probabilities,
    sigmoid,
)


def test_a_reliability_table_compares_what_is_said_with_what_is_so():
    table = reliability(np.array([0.72, 0.78, 0.74, 0.76, 0.9, 1.0]), np.array([1, 1, 1, 0, 0, 1]), num_bins=10)
    assert [entry.num for entry in table] == [0, 0, 0, 0, 0, 0, 0, 4, 0, 2]
    assert (table[7].low, table[7].high) == (0.7, 0.8)
    assert (table[7].mean_predicted, table[7].share) == (pytest.approx(0.75), pytest.approx(0.75))
    assert (table[9].mean_predicted, table[9].share) == (pytest.approx(0.95), pytest.approx(0.5))
    assert table[0].mean_predicted is None
    assert expected_calibration_error(table) == pytest.approx(2 * 0.45 / 6)
    assert expected_calibration_error([]) == 0.0


def test_the_temperature_is_the_factor_by_which_logits_are_too_large():
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 2, 20_000)
    labels = rng.random(20_000) < sigmoid(honest)
    assert fit_temperature(honest, labels) == pytest.approx(1.0, abs=0.03)
    assert fit_temperature(3 * honest, labels) == pytest.approx(3.0, abs=0.1)
    overconfident = expected_calibration_error(reliability(sigmoid(3 * honest), labels))
    halves = np.arange(20_000) % 2
    scaled = scaled_probabilities(3 * honest, labels, halves)
    assert overconfident > 0.08
    assert expected_calibration_error(reliability(scaled, labels)) < 0.02


def test_the_temperature_of_separable_rows_stays_finite():
    assert fit_temperature(np.array([-1.0, 1.0]), np.array([False, True])) == pytest.approx(0.2, rel=1e-3)


def test_each_half_is_scaled_by_the_temperature_of_the_other_one():
    logits = np.array([2.0, -2.0, 2.0, 4.0, -4.0, 4.0])
    labels = np.array([True, True, True, True, False, True])
    halves = np.array([0, 0, 0, 1, 1, 1])
    scaled = scaled_probabilities(logits, labels, halves)
    there = fit_temperature(logits[3:], labels[3:])
    assert scaled[:3] == pytest.approx(sigmoid(logits[:3] / there))


def test_very_large_logits_do_not_overflow():
    with np.errstate(over="raise"):
        assert sigmoid(np.array([-1e4, 1e4])).tolist() == [0.0, 1.0]

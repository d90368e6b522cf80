"""Bootstrap intervals cover what they claim, pair what belongs together, and are honest about too few items."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negalign_ray.evaluation.intervals import (
    MAX_COUNTS,
    Interval,
    Sums,
    difference_interval,
    mean_interval,
    rate_interval,
    ratio_interval,
    sums_interval,
)

numbers = st.floats(-1e6, 1e6, allow_subnormal=False)
samples = st.lists(numbers, min_size=2, max_size=30)


def test_no_item_has_no_mean_and_one_item_has_no_interval():
    assert mean_interval([]) == Interval(None, None, None, 0)
    assert mean_interval([2.5]) == Interval(2.5, None, None, 1)
    assert difference_interval(Sums.of([]), Sums.of([])) == Interval(None, None, None, 0)
    assert difference_interval(Sums.of([1.0]), Sums.of([3.0])) == Interval(2.0, None, None, 1)


def test_two_items_give_the_exact_bootstrap_distribution():
    # resamples of (0, 1) have means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4: 2.5 % and 97.5 % are the ends
    assert mean_interval([0.0, 1.0]) == Interval(0.5, 0.0, 1.0, 2)


def test_the_interval_of_a_mean_agrees_with_the_normal_one_on_many_items():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=2000)
    interval = mean_interval(values, resamples=4000)
    margin = 1.96 * values.std() / math.sqrt(2000)
    assert interval.low == pytest.approx(values.mean() - margin, abs=0.005)
    assert interval.high == pytest.approx(values.mean() + margin, abs=0.005)


def test_95_percent_intervals_cover_the_truth_about_95_percent_of_the_time():
    rng = np.random.default_rng(1)
    mean_hits = difference_hits = 0
    for trial in range(400):
        before = rng.normal(size=60)
        after = before + rng.normal(0.3, 0.5, size=60)
        mean = mean_interval(before, resamples=400, seed=trial)
        difference = difference_interval(Sums.of(before), Sums.of(after), resamples=400, seed=trial)
        mean_hits += mean.low <= 0.0 <= mean.high
        difference_hits += difference.low <= 0.3 <= difference.high
    assert 0.91 <= mean_hits / 400 <= 0.98
    assert 0.91 <= difference_hits / 400 <= 0.98


def test_pairing_cancels_what_the_prompts_have_in_common():
    rng = np.random.default_rng(2)
    before = rng.normal(0, 10, size=50)  # prompts differ wildly
    after = before - 1 + rng.normal(0, 0.1, size=50)  # but each falls by about 1
    paired = difference_interval(Sums.of(before), Sums.of(after))
    assert paired.high < 0
    assert paired.high - paired.low < 0.1
    assert mean_interval(before).low < mean_interval(after).high  # unpaired, nothing could be said


@settings(max_examples=60, deadline=None)
@given(samples, st.integers(0, 5))
def test_an_interval_holds_its_mean_and_stays_within_the_data(values, seed):
    interval = mean_interval(values, resamples=300, seed=seed)
    slack = 1e-9 * max(1.0, max(map(abs, values)))
    assert interval.mean == pytest.approx(sum(values) / len(values), abs=slack)
    assert min(values) - slack <= interval.low <= interval.mean + slack
    assert interval.mean - slack <= interval.high <= max(values) + slack


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=30))
def test_swapping_before_and_after_mirrors_the_difference(pairs):
    before, after = (Sums.of(values) for values in zip(*pairs, strict=True))
    forth = difference_interval(before, after, resamples=200)
    back = difference_interval(after, before, resamples=200)
    slack = 1e-9 * max(1.0, *(abs(value) for pair in pairs for value in pair))
    assert (forth.mean, forth.low, forth.high) == pytest.approx((-back.mean, -back.high, -back.low), abs=slack)


@settings(max_examples=40, deadline=None)
@given(samples, numbers)
def test_a_constant_shift_moves_the_interval_and_keeps_its_width(values, shift):
    here = mean_interval(values, resamples=200)
    there = mean_interval([value + shift for value in values], resamples=200)
    slack = 1e-8 * max(1.0, abs(shift), max(map(abs, values)))
    assert there.low - here.low == pytest.approx(shift, abs=slack)
    assert there.high - here.high == pytest.approx(shift, abs=slack)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(3).normal(size=40)
    assert mean_interval(values, seed=7) == mean_interval(values, seed=7)
    assert mean_interval(values, seed=7) != mean_interval(values, seed=8)


def test_a_ratio_of_sums_is_weighted_by_its_denominators():
    # 2 nats over 1 token and 6 nats over 3 tokens: 8 / 4 = 2 nats a token in every resample
    interval = sums_interval(Sums.of([2.0, 6.0], [1, 3]))
    assert (interval.mean, interval.low, interval.high) == (2.0, 2.0, 2.0)
    perplexity = sums_interval(Sums.of([-2.0, -6.0], [1, 3]), transform=lambda x: np.exp(-x))
    assert (perplexity.mean, perplexity.low, perplexity.high) == pytest.approx((math.exp(2),) * 3)


def test_items_without_denominator_leave_the_figure_undefined_not_zero():
    assert sums_interval(Sums.of([1.0, 2.0], [0, 0])) == Interval(None, None, None, 2)
    half_empty = sums_interval(Sums.of([0.0, 2.0], [0, 1]))  # a quarter of the resamples hold no token at all
    assert (half_empty.mean, half_empty.low, half_empty.high) == (2.0, 2.0, 2.0)


def test_a_ratio_of_before_and_after():
    interval = ratio_interval(Sums.of([1.0, 2.0, 4.0]), Sums.of([1.1, 2.2, 4.4]))
    assert (interval.mean, interval.low, interval.high) == pytest.approx((1.1, 1.1, 1.1))
    assert ratio_interval(Sums.of([0.0, 0.0]), Sums.of([1.0, 1.0])).mean is None


def test_a_rate_where_all_agree_has_the_exact_binomial_bound():
    none, every = rate_interval([0.0] * 60), rate_interval([1.0] * 60)
    assert (none.low, none.high) == pytest.approx((0.0, 1 - 0.025 ** (1 / 60)))
    assert (every.low, every.high) == pytest.approx((0.025 ** (1 / 60), 1.0))
    assert none.high == pytest.approx(0.0596, abs=1e-4)
    assert rate_interval([0.0, 1.0, 1.0]) == mean_interval([0.0, 1.0, 1.0])


def test_sides_of_different_size_cannot_be_paired():
    with pytest.raises(ValueError, match="got 2 and 3"):
        difference_interval(Sums.of([1.0, 2.0]), Sums.of([1.0, 2.0, 3.0]))


def test_many_items_are_resampled_in_bounded_blocks():
    values = np.arange(10_000) % 7
    interval = mean_interval(values, resamples=MAX_COUNTS // 10_000 + 5)
    assert interval.low < values.mean() < interval.high

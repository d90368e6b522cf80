"""Tests on pairs against numbers worked out by hand."""

import numpy as np
import pytest

from negalign_ray.evaluation.bootstrap import Bootstrap, pooled
from negalign_ray.evaluation.figures import Figure
from negalign_ray.evaluation.intervals import Sums
from negalign_ray.evaluation.significance import (
    NUM_SWAPS,
    McNemar,
    SignFlips,
    mcnemar,
    pair_test,
    pair_tests,
    sign_flips,
    sign_test,
)
from negalign_ray.evaluation.table import is_clear


def rate(hits, *, ids=None, is_rate=True, key="refusals"):
    ids = tuple(range(len(hits))) if ids is None else ids
    sums = Sums.of([float(hit) for hit in hits])
    return pooled([[Figure(key, key, "lower", sums, (None,) * len(hits), is_rate=is_rate, prompt_ids=ids)]])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(0, 4, 2 / 16), (4, 0, 2 / 16), (1, 8, 2 * (1 + 9) / 512), (3, 3, 1.0), (0, 0, 1.0)],
)
def test_the_sign_test_doubles_the_binomial_tail(first, second, expected):
    assert sign_test(first, second) == pytest.approx(expected)


def test_only_prompts_on_which_the_models_differ_count():
    before = rate([1, 1, 1, 1, 1, 0, 0, 1])["refusals"]
    after = rate([0, 0, 0, 0, 0, 0, 1, 1])["refusals"]  # five fall, one rises, two stay
    assert mcnemar(before, after) == McNemar(only_before=5, only_after=1, p_value=pytest.approx(2 * (1 + 6) / 64))


def test_pairs_are_made_by_prompt_not_by_position():
    before, after = rate([1, 0, 0], ids=(7, 8, 9))["refusals"], rate([0, 1, 0], ids=(9, 7, 5))["refusals"]
    assert mcnemar(before, after) == McNemar(0, 0, 1.0)  # prompt 7: yes and yes, prompt 9: no and no


def test_means_and_prompts_with_several_answers_have_no_such_test():
    assert mcnemar(rate([1, 0], is_rate=False)["refusals"], rate([1, 1], is_rate=False)["refusals"]) is None
    twice = rate([1, 0, 1], ids=(1, 1, 2))["refusals"]
    assert mcnemar(twice, twice) is None
    assert isinstance(pair_test(twice, twice), SignFlips)
    both = {**rate([1, 0]), **rate([1, 0], is_rate=False, key="score")}
    assert pair_tests(both, both) == {"refusals": McNemar(0, 0, 1.0), "score": SignFlips(0, 1.0)}


def test_four_changed_prompts_of_24_convince_the_bootstrap_and_not_the_exact_test():
    before, after = rate([1] * 4 + [0] * 20)["refusals"], rate([0] * 24)["refusals"]
    interval = Bootstrap(resamples=20_000, seed=0).difference(before, after)
    assert interval.high < 0  # a resample without any of the four has the chance (20 / 24) ** 24 = 0.013
    assert mcnemar(before, after).p_value == pytest.approx(0.125)


def mean(values, lengths=None, *, ids=None, transform=None):
    ids = tuple(range(len(values))) if ids is None else ids
    figure = Figure("score", "score", "lower", Sums.of(values, lengths), (None,) * len(ids), transform, prompt_ids=ids)
    return pooled([[figure]])["score"]


def test_sign_flips_count_the_swaps_that_leave_as_large_a_difference():
    """Falls of 0.1, 0.2 and 0.3, sum 0.6: only all or none swapped give it. With -0.1, 0.2, 0.3 the sum is 0.4, which
    0.6 and 0.4 of the four sums 0.6, 0.4, 0.2, 0 reach. The prompt that stays says nothing."""
    before = mean([0.5, 0.5, 0.5, 0.7])
    assert sign_flips(before, mean([0.4, 0.3, 0.2, 0.7])) == SignFlips(3, 2 / 8)
    assert sign_flips(before, mean([0.6, 0.3, 0.2, 0.7])) == SignFlips(3, 4 / 8)
    assert sign_flips(before, before) == SignFlips(0, 1.0)


def test_sign_flips_of_a_yes_or_no_are_the_exact_mcnemar_test():
    for first, second in (([1] * 6 + [0] * 4, [0] * 9 + [1]), ([1] * 4 + [0] * 20, [0] * 24)):
        before, after = rate(first)["refusals"], rate(second)["refusals"]
        assert sign_flips(before, after).p_value == pytest.approx(mcnemar(before, after).p_value)


def test_sign_flips_of_a_perplexity_swap_sums_and_lengths_together():
    """Three prompts of 2, 1 and 1 tokens and equal log-probs per token: whatever is swapped, nothing changes."""
    before = mean([-2.0, -1.0, -1.0], [2, 1, 1], transform=lambda x: np.exp(-x))
    assert sign_flips(before, mean([-1.0, -2.0, -1.0], [1, 2, 1], transform=before.transform)) == SignFlips(2, 1.0)
    worse = mean([-4.0, -2.0, -2.0], [2, 1, 1], transform=before.transform)
    assert sign_flips(before, worse) == SignFlips(3, 2 / 8)


def test_pairs_of_sign_flips_are_made_by_prompt_and_without_any_there_is_no_test():
    assert sign_flips(mean([0.1, 0.9], ids=(7, 8)), mean([0.9, 0.1], ids=(8, 7))) == SignFlips(0, 1.0)
    assert sign_flips(mean([0.1], ids=(1,)), mean([0.2], ids=(2,))) is None


def test_many_prompts_are_swapped_at_random_always_in_the_same_way():
    falls = np.full(40, 0.1)
    test = sign_flips(mean(falls), mean(np.zeros(40)))
    assert test == SignFlips(40, 1 / (NUM_SWAPS + 1)), "no drawn swap gives 40 falls again"
    values = np.random.default_rng(0).normal(size=(2, 400))  # in several blocks
    assert sign_flips(mean(values[0]), mean(values[1])) == sign_flips(mean(values[0]), mean(values[1]))


@pytest.mark.parametrize(("num", "lowest", "highest"), [(2, 0, 0), (5, 0, 0), (10, 0.02, 0.06), (24, 0.02, 0.07)])
def test_models_that_are_alike_are_told_apart_at_most_one_time_in_twenty(num, lowest, highest):
    """Of 300 pairs of runs, mean scores drawn from one distribution; the interval alone is wrong more often."""
    rng, bootstrap = np.random.default_rng(1), Bootstrap(resamples=1000, seed=0)
    by_both = by_interval = 0
    for _ in range(300):
        before, after = mean(rng.normal(size=num)), mean(rng.normal(size=num))
        change = bootstrap.difference(before, after)
        bounds = {"low": change.low, "high": change.high}
        by_interval += is_clear(bounds, None)
        by_both += is_clear(bounds, {"p_value": sign_flips(before, after).p_value})
    assert lowest <= by_both / 300 <= highest
    assert by_interval > by_both


def test_the_sign_test_is_wrong_at_most_one_time_in_twenty():
    rng = np.random.default_rng(0)
    wins = rng.binomial(40, 0.5, size=4000)
    p_values = {int(count): sign_test(int(count), 40 - int(count)) for count in set(wins.tolist())}
    assert 0.02 < np.mean([p_values[int(count)] < 0.05 for count in wins]) <= 0.05

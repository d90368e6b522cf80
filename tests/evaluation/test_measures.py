"""Each measure on numbers small enough to check by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from negalign_ray.data.ngrams import repetition_frac
from negalign_ray.errors import NonFiniteError
from negalign_ray.evaluation.intervals import mean_interval
from negalign_ray.evaluation.measures import distinct_contributions, require_finite


def distinct_2(answers):
    """As it is defined."""
    bigrams = [pair for tokens in answers for pair in itertools.pairwise(tokens)]
    return len(set(bigrams)) / len(bigrams) if bigrams else None


def test_each_answer_contributes_to_distinct_2_what_it_would_lack_without_it():
    # 12 21 12 | 12: theta 2/4; without the first 1/1, without the second 2/3; 1/2 + 1 * (5/6 - 1), 1/2 + (5/6 - 2/3)
    assert distinct_contributions([(1, 2, 1, 2), (1, 2)]) == pytest.approx([1 / 3, 2 / 3])
    assert distinct_contributions([(1, 2, 3), (1, 2, 3)]) == [0.5, 0.5], "two equal answers: either could be missing"
    assert distinct_contributions([(1, 2, 3), (4, 5), (6, 7)]) == [1.0, 1.0, 1.0], "nothing repeats: no answer matters"
    assert distinct_contributions([(1, 2), (), (3,)]) == [1.0, 1.0, 1.0], "without the only bigram nothing is left"
    assert distinct_contributions([(1,), ()]) == distinct_contributions([]) == []


@given(st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=8))
def test_the_mean_contribution_is_distinct_2(answers):
    contributions = distinct_contributions(answers)
    whole = distinct_2(answers)
    assert (sum(contributions) / len(contributions) if contributions else None) == pytest.approx(whole)


def test_the_interval_of_distinct_2_covers_its_expectation_about_95_percent_of_the_time():
    """The plain bootstrap never does: more than a third of a resample repeats its other answers."""
    rng = np.random.default_rng(0)

    def answers():
        return (rng.zipf(1.5, size=(24, 16)) % 200).tolist()

    expected = np.mean([distinct_2(answers()) for _ in range(400)])
    intervals = [mean_interval(distinct_contributions(answers()), resamples=200) for _ in range(200)]
    covered = sum(interval.low <= expected <= interval.high for interval in intervals)
    assert 0.90 <= covered / 200 <= 0.99


def test_repetition_is_the_share_of_4_grams_seen_before():
    assert repetition_frac((1, 2, 1, 2, 1, 2, 1)) == 0.5  # 1212 2121 1212 2121
    assert repetition_frac((7,) * 13) == 0.9  # ten equal 4-grams
    assert repetition_frac((1, 2, 3, 4, 5)) == 0.0
    assert repetition_frac((1, 1, 1)) == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_a_log_prob_that_is_not_finite_is_an_error_not_a_figure(bad):
    with pytest.raises(NonFiniteError, match=r"1 of 2 log-probs are not finite \(first: item 1\)"):
        require_finite([-1.0, bad], what="log-probs")

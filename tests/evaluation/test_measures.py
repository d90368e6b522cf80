"""Each measure on numbers small enough to check by hand."""

import math

import pytest

from negalign_ray.data.ngrams import repetition_frac
from negalign_ray.errors import NonFiniteError
from negalign_ray.evaluation.measures import distinct_n, mean_length_tokens, perplexity


def test_length_is_the_mean_number_of_tokens_and_counts_empty_answers():
    assert mean_length_tokens([(1, 2, 3), (), (4,)]) == pytest.approx(4 / 3)
    assert mean_length_tokens([]) is None


def test_distinct_2_counts_bigrams_over_all_answers_together():
    assert distinct_n([(1, 2, 1, 2), (1, 2)]) == 0.5  # 12 21 12 | 12 -> {12, 21} of 4
    assert distinct_n([(1, 2, 3)]) == 1.0
    assert distinct_n([(1, 2, 3), (1, 2, 3)]) == 0.5  # two equal answers
    assert distinct_n([(1,), ()]) is None  # no bigram anywhere; no bigram spans two answers


def test_repetition_is_the_share_of_4_grams_seen_before():
    assert repetition_frac((1, 2, 1, 2, 1, 2, 1)) == 0.5  # 1212 2121 1212 2121
    assert repetition_frac((7,) * 13) == 0.9  # ten equal 4-grams
    assert repetition_frac((1, 2, 3, 4, 5)) == 0.0
    assert repetition_frac((1, 1, 1)) == 0.0


def test_perplexity_weights_texts_by_their_tokens():
    # two texts: 2 tokens of probability 1/2, 1 token of 1/16 -> (2^2 * 16)^(1/3) = 4
    assert perplexity([2 * math.log(1 / 2), math.log(1 / 16)], [2, 1]) == pytest.approx(4.0)
    assert perplexity([], []) is None


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_a_log_prob_that_is_not_finite_is_an_error_not_a_figure(bad):
    with pytest.raises(NonFiniteError, match=r"1 of 2 log-probs are not finite \(first: item 1\)"):
        perplexity([-1.0, bad], [1, 1])

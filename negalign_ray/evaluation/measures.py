"""Measures of answers: pure functions of texts, token ids and summed log-probs."""

import math
from collections import Counter
from collections.abc import Sequence

from negalign_ray.data.ngrams import Tokens, ngrams
from negalign_ray.errors import NonFiniteError


def mean_length_tokens(answers: Sequence[Tokens]) -> float | None:
    """None without answers."""
    return sum(map(len, answers)) / len(answers) if answers else None


def distinct_n(answers: Sequence[Tokens], *, n: int = 2) -> float | None:
    """Different n-grams / all n-grams, over all answers together (Li et al. 2016); None when no answer has n tokens.

    [[1, 2, 1, 2], [1, 2]] -> bigrams 12 21 12 | 12 -> 2 different of 4 -> 0.5. Falls with the amount of text, so
    compare equal numbers of answers of similar length.
    """
    grams = [gram for tokens in answers for gram in ngrams(tokens, n)]
    return len(set(grams)) / len(grams) if grams else None


def distinct_contributions(answers: Sequence[Tokens], *, n: int = 2) -> list[float]:
    """[N] one number per answer; their mean is `distinct_n`, and their spread how much it rests on single answers.

    theta + (N - 1) (mean_j theta_(j) - theta_(i)), with theta_(i) = distinct-n without answer i: the jackknife's
    pseudo-values (Tukey 1958), shifted to the mean theta. A bootstrap of distinct-n itself is useless: a resample
    repeats answers, which lowers it, so that the percentile interval lies below the figure.

    [[1, 2, 1, 2], [1, 2]] -> theta 2/4; without the first 1/1, without the second 2/3 -> 1/3, 2/3. Empty when no
    answer has n tokens.
    """
    grams = [ngrams(tokens, n) for tokens in answers]
    holders = Counter(gram for tokens in grams for gram in set(tokens))
    num_different, num_all = len(holders), sum(map(len, grams))
    if not num_all:
        return []
    theta = num_different / num_all
    without = []
    for tokens in grams:
        own = sum(holders[gram] == 1 for gram in set(tokens))  # bigrams that are gone without this answer
        rest = num_all - len(tokens)
        without.append((num_different - own) / rest if rest else theta)
    mean = math.fsum(without) / len(without)
    return [theta + (len(without) - 1) * (mean - value) for value in without]


def perplexity(logprobs: Sequence[float], lengths: Sequence[int]) -> float | None:
    """exp(-sum of log-probs / number of tokens) over all texts; None without tokens. Raises NonFiniteError."""
    total, num_tokens = require_finite(logprobs, what="log-probs"), sum(lengths)
    return math.exp(-total / num_tokens) if num_tokens else None


def require_finite(values: Sequence[float], *, what: str) -> float:
    """The sum of `values`; NonFiniteError when one of them is NaN or infinite (a mean would hide it or be nothing)."""
    bad = [index for index, value in enumerate(values) if not math.isfinite(value)]
    if bad:
        raise NonFiniteError(
            f"{len(bad)} of {len(values)} {what} are not finite (first: item {bad[0]})", role="evaluation"
        )
    return math.fsum(values)

"""Measures of answers: pure functions of texts, token ids and summed log-probs."""

import math
from collections import Counter
from collections.abc import Sequence

from negalign_ray.data.ngrams import Tokens, ngrams
from negalign_ray.errors import NonFiniteError


def distinct_contributions(answers: Sequence[Tokens], *, n: int = 2) -> list[float]:
    """[N] one number per answer. Their mean is distinct-n (Li et al. 2016): different n-grams / all n-grams, over all
    answers together; their spread says how much it rests on single answers. Empty when no answer has n tokens.

    theta + (N - 1) (mean_j theta_(j) - theta_(i)), with theta = distinct-n and theta_(i) = that without answer i: the
    jackknife's pseudo-values (Tukey 1958), shifted to the mean theta. A bootstrap of theta itself is useless: a
    resample repeats answers, which lowers theta, so that the percentile interval lies below the figure.

    [[1, 2, 1, 2], [1, 2]] -> bigrams 12 21 12 | 12 -> theta 2/4; without the first 1/1, without the second 2/3
    -> 1/3, 2/3. Theta falls with the amount of text, so compare equal numbers of answers of similar length.
    """
    grams = [ngrams(tokens, n) for tokens in answers]
    holders = Counter(gram for tokens in grams for gram in set(tokens))
    num_different, num_all = len(holders), sum(map(len, grams))
    if not num_all:
        return []
    theta = num_different / num_all
    without = []
    for tokens in grams:
        own = sum(holders[gram] == 1 for gram in set(tokens))  # n-grams that are gone without this answer
        rest = num_all - len(tokens)
        without.append((num_different - own) / rest if rest else theta)
    mean = math.fsum(without) / len(without)
    return [theta + (len(without) - 1) * (mean - value) for value in without]


def require_finite(values: Sequence[float], *, what: str) -> float:
    """The sum of `values`; NonFiniteError when one of them is NaN or infinite (a mean would hide it or be nothing)."""
    bad = [index for index, value in enumerate(values) if not math.isfinite(value)]
    if bad:
        raise NonFiniteError(
            f"{len(bad)} of {len(values)} {what} are not finite (first: item {bad[0]})", role="evaluation"
        )
    return math.fsum(values)

"""Exact tests on pairs: McNemar for two rates of the same prompts, the sign test for wins and losses.

Both ask one question: of the prompts on which the two models differ, is a split this uneven likely by chance? A
bootstrap interval of few differing prompts is too sure of itself: of 24 prompts, 4 that change and none the other way
give an interval without 0, but p = 0.125.
"""

from dataclasses import dataclass

from negalign_ray.evaluation.bootstrap import Figures, paired
from negalign_ray.evaluation.figures import Figure


@dataclass(frozen=True, slots=True)
class McNemar:
    """Prompts that count on one side only; `p_value` is two-sided and exact."""

    only_before: int
    only_after: int
    p_value: float


def sign_test(first: int, second: int) -> float:
    """Two-sided, exact: how likely a split at least as uneven as (first, second) is when both are equally likely.

    (0, 4) -> 2 * 0.5 ** 4 = 0.125; (1, 8) -> 2 * (1 + 9) / 512 = 0.039; nothing to split -> 1.
    """
    total = first + second
    from scipy.stats import binomtest  # seconds to import, and every role imports this file

    return float(binomtest(first, total, 0.5).pvalue) if total else 1.0


def mcnemar(before: Figure, after: Figure) -> McNemar | None:
    """Of two pooled rates, over the prompts that both have; None for other figures and where a prompt counts several
    answers (McNemar 1947 takes one pair each)."""
    if not before.is_rate:
        return None
    before, after = paired(before, after)
    if not len(before.sums) or (before.sums.denominators != 1).any() or (after.sums.denominators != 1).any():
        return None
    first, second = before.sums.numerators > 0, after.sums.numerators > 0
    only_before, only_after = int((first & ~second).sum()), int((second & ~first).sum())
    return McNemar(only_before, only_after, sign_test(only_before, only_after))


def mcnemar_of(first: Figures, second: Figures) -> dict[str, McNemar]:
    """For every rate that both have."""
    both = {key: mcnemar(first[key], second[key]) for key in first if key in second}
    return {key: test for key, test in both.items() if test is not None}

"""Tests on pairs: McNemar of two rates of the same prompts, sign flips of two means, the sign test of wins and losses.

All ask one question: of the prompts on which the two models differ, is a split this uneven likely by chance? A
bootstrap interval of few prompts is too sure of itself: of 24 prompts, 4 that change and none the other way give an
interval without 0, but p = 0.125. Between two models that are alike it finds a change in the means of 5 prompts in one
case of five. No test here gives less than 2 / 2^n on n differing prompts, so that fewer than 6 prove nothing.

# Axes: W = ways to swap, N = prompts that differ.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from negalign_ray.evaluation.bootstrap import Figures, paired
from negalign_ray.evaluation.figures import Figure

NUM_SWAPS = 9999  # drawn where there are more ways to swap than that; where there are fewer, all are looked at
MAX_ENTRIES = 4_000_000  # of the table of swaps that exists at once
MAX_CACHED_ENTRIES = 1_000_000  # 8 MB a table
TOLERANCE = 1e-9  # of the values: what gives the same difference but for rounding is as large as the one seen


@dataclass(frozen=True, slots=True)
class McNemar:
    """Prompts that count on one side only; `p_value` is two-sided and exact."""

    only_before: int
    only_after: int
    p_value: float


@dataclass(frozen=True, slots=True)
class SignFlips:
    """Prompts that have not the same value on both sides; `p_value` is two-sided."""

    num_differing: int
    p_value: float


PairTest = McNemar | SignFlips


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


def sign_flips(before: Figure, after: Figure, *, seed: int = 0) -> SignFlips | None:
    """Of any two pooled figures, over the prompts that both have (Fisher 1935): were the models alike, the two values
    of a prompt might as well be swapped. p is the share of all swaps that leave a difference as large as the one seen.

    3 prompts that fall by 0.1, 0.2 and 0.3 -> of 8 ways to swap, two leave 0.6 or -0.6 in sum -> p = 0.25.
    Above 13 differing prompts NUM_SWAPS are drawn, and what was seen counts as one more. None without a value.
    """
    before, after = paired(before, after)
    first, second = (side.sums.value(side.transform) for side in (before, after))
    if first is None or second is None:
        return None
    differs = (before.sums.numerators != after.sums.numerators) | (before.sums.denominators != after.sums.denominators)
    num = int(differs.sum())
    limit = abs(second - first) - TOLERANCE * (abs(first) + abs(second))
    num_extreme = num_swaps = 0
    for swaps_WN in _swaps(num, seed):
        gaps_W = _gaps(before, after, swaps_WN, differs)
        num_extreme += int((~(np.abs(gaps_W) < limit)).sum())  # a gap of nothing over nothing counts, too
        num_swaps += len(swaps_WN)
    is_exact = 2**num <= NUM_SWAPS
    return SignFlips(num, num_extreme / num_swaps if is_exact else (num_extreme + 1) / (num_swaps + 1))


def _gaps(before: Figure, after: Figure, swaps_WN: np.ndarray, differs: np.ndarray) -> np.ndarray:
    """[W] after - before with the values of the marked prompts swapped."""
    tops, bottoms = after.sums.numerators, after.sums.denominators
    moved_W = swaps_WN @ (tops - before.sums.numerators)[differs]
    moved_below_W = swaps_WN @ (bottoms - before.sums.denominators)[differs]
    with np.errstate(divide="ignore", invalid="ignore"):
        first_W = (before.sums.numerators.sum() + moved_W) / (before.sums.denominators.sum() + moved_below_W)
        second_W = (tops.sum() - moved_W) / (bottoms.sum() - moved_below_W)
        if before.transform is not None:
            first_W, second_W = before.transform(first_W), before.transform(second_W)
        return second_W - first_W


def _swaps(num: int, seed: int) -> Iterator[np.ndarray]:
    """[W, num] of 0 and 1: every way, or NUM_SWAPS drawn ones, in blocks of bounded size. Same seed, same draws."""
    if 2**num <= NUM_SWAPS or num * NUM_SWAPS <= MAX_CACHED_ENTRIES:
        yield _cached_swaps(num, seed)
        return
    rng = np.random.default_rng(seed)
    block = max(1, MAX_ENTRIES // num)
    for start in range(0, NUM_SWAPS, block):
        yield rng.integers(0, 2, (min(block, NUM_SWAPS - start), num), dtype=np.int8).astype(np.float64)


@lru_cache(maxsize=8)
def _cached_swaps(num: int, seed: int) -> np.ndarray:
    """A summary asks for the same ones a hundred times."""
    if 2**num <= NUM_SWAPS:
        swaps_WN = (np.arange(2**num)[:, None] >> np.arange(num)) & 1
    else:
        swaps_WN = np.random.default_rng(seed).integers(0, 2, (NUM_SWAPS, num), dtype=np.int8)
    swaps_WN = swaps_WN.astype(np.float64)
    swaps_WN.setflags(write=False)
    return swaps_WN


def pair_test(before: Figure, after: Figure, *, seed: int = 0) -> PairTest | None:
    """McNemar's where a prompt is a yes or a no, else sign flips."""
    return mcnemar(before, after) or sign_flips(before, after, seed=seed)


def pair_tests(first: Figures, second: Figures, *, seed: int = 0) -> dict[str, PairTest]:
    """For every figure that both have."""
    both = {key: pair_test(first[key], second[key], seed=seed) for key in first if key in second}
    return {key: test for key, test in both.items() if test is not None}

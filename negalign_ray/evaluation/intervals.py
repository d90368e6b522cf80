"""Percentile bootstrap intervals (Efron 1979) of means, ratios of sums, and paired before/after differences.

Every figure is a ratio of sums over items, value = f(sum numerators / sum denominators): a mean has denominators 1, a
per-token log-prob has the lengths, a perplexity has f = exp(-x). Items (prompts, answers) are resampled with
replacement; before and after share each resample, so what the items have in common cancels in a paired difference.

# Axes: N = items, B = resamples.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypedDict, Unpack

import numpy as np

LEVEL = 0.95
MAX_COUNTS = 4_000_000  # entries of the [B, N] table of counts that exist at once
MAX_CACHED_COUNTS = 1_000_000  # 8 MB a table
Transform = Callable[[np.ndarray], np.ndarray]
Values = Sequence[float] | np.ndarray


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its 95 % interval. `mean` is None without items; `low` and `high` are None with fewer than two."""

    mean: float | None
    low: float | None
    high: float | None
    num: int  # items


@dataclass(frozen=True, eq=False)
class Sums:
    """Per-item numerators and denominators of one figure, [N] float64 each."""

    numerators: np.ndarray
    denominators: np.ndarray

    @classmethod
    def of(cls, numerators: Values, denominators: Values | None = None) -> "Sums":
        top = np.asarray(numerators, dtype=np.float64)
        bottom = np.ones_like(top) if denominators is None else np.asarray(denominators, dtype=np.float64)
        if top.ndim != 1 or top.shape != bottom.shape:
            raise ValueError(f"numerators {top.shape} and denominators {bottom.shape} must be two equal vectors")
        return cls(top, bottom)

    def __len__(self) -> int:
        return len(self.numerators)

    def value(self, transform: Transform | None = None) -> float | None:
        """None when there is nothing to divide by."""
        total = math.fsum(self.denominators)
        if total == 0:
            return None
        value = math.fsum(self.numerators) / total
        return value if transform is None else float(transform(np.asarray(value)))

    def resampled(self, counts_BN: np.ndarray, transform: Transform | None) -> np.ndarray:
        """[B] values; NaN for a resample whose denominators sum to 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            values_B = (counts_BN @ self.numerators) / (counts_BN @ self.denominators)
        return values_B if transform is None else transform(values_B)


def _counts(num_items: int, *, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each item is drawn in each resample, in blocks of bounded size. Same seed and size, same draws."""
    if num_items * resamples <= MAX_CACHED_COUNTS:
        yield _cached_counts(num_items, resamples, seed)
        return
    rng = np.random.default_rng(seed)
    block = max(1, MAX_COUNTS // num_items)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        yield _draw(rng, num_items, size)


def _draw(rng: np.random.Generator, num_items: int, size: int) -> np.ndarray:
    return rng.multinomial(num_items, np.full(num_items, 1.0 / num_items), size=size).astype(np.float64)


@lru_cache(maxsize=8)
def _cached_counts(num_items: int, resamples: int, seed: int) -> np.ndarray:
    """A summary asks for the same draws a hundred times; drawing them takes most of its time."""
    counts_BN = _draw(np.random.default_rng(seed), num_items, resamples)
    counts_BN.setflags(write=False)
    return counts_BN


def _interval(value: float, values_B: np.ndarray, *, level: float, num: int) -> Interval:
    finite = values_B[np.isfinite(values_B)]
    if not len(finite):
        return Interval(value, None, None, num)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(finite, [tail, 100 - tail])
    return Interval(value, float(low), float(high), num)


def sums_interval(
    sums: Sums, *, transform: Transform | None = None, resamples: int = 2000, seed: int = 0, level: float = LEVEL
) -> Interval:
    """Interval of f(sum numerators / sum denominators)."""
    num, value = len(sums), sums.value(transform)
    if num < 2 or value is None:
        return Interval(value, None, None, num)
    blocks = [sums.resampled(counts, transform) for counts in _counts(num, resamples=resamples, seed=seed)]
    return _interval(value, np.concatenate(blocks), level=level, num=num)


class BootstrapOptions(TypedDict, total=False):
    """Keyword arguments of the paired intervals; what is left out has the default of `sums_interval`."""

    transform: Transform | None
    resamples: int
    seed: int
    level: float


def difference_interval(before: Sums, after: Sums, **options: Unpack[BootstrapOptions]) -> Interval:
    """Interval of after - before; item i must be the same prompt on both sides."""
    return _paired(before, after, lambda a, b: b - a, **options)


def ratio_interval(before: Sums, after: Sums, **options: Unpack[BootstrapOptions]) -> Interval:
    """Interval of after / before; `mean` is None when before is 0."""
    return _paired(before, after, lambda a, b: b / a, **options)


def _paired(
    before: Sums,
    after: Sums,
    combine: Callable[[np.ndarray, np.ndarray], np.ndarray],
    *,
    transform: Transform | None = None,
    resamples: int = 2000,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    num = len(before)
    if num != len(after):
        raise ValueError(f"paired figures need the same items on both sides; got {num} and {len(after)}")
    first, second = before.value(transform), after.value(transform)
    if first is None or second is None:
        return Interval(None, None, None, num)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(combine(np.asarray(first), np.asarray(second)))
    if not math.isfinite(value):
        return Interval(None, None, None, num)
    if num < 2:
        return Interval(value, None, None, num)
    blocks = []
    for counts in _counts(num, resamples=resamples, seed=seed):
        with np.errstate(divide="ignore", invalid="ignore"):
            blocks.append(combine(before.resampled(counts, transform), after.resampled(counts, transform)))
    return _interval(value, np.concatenate(blocks), level=level, num=num)


def mean_interval(values: Values, *, resamples: int = 2000, seed: int = 0, level: float = LEVEL) -> Interval:
    """Interval of a mean."""
    return sums_interval(Sums.of(values), resamples=resamples, seed=seed, level=level)


def rate_interval(hits: Values, *, resamples: int = 2000, seed: int = 0, level: float = LEVEL) -> Interval:
    """Interval of a share of 0/1 items.

    Where all N items agree, every resample agrees too and the bootstrap would claim certainty; the exact binomial bound
    (Clopper-Pearson) stands in: 0 hits of 60 -> [0, 1 - 0.025^(1/60)] = [0, 0.060].
    """
    hits = np.asarray(hits, dtype=np.float64)
    if len(hits) < 2 or (0 < hits.sum() < len(hits)):
        return mean_interval(hits, resamples=resamples, seed=seed, level=level)
    bound = ((1 - level) / 2) ** (1 / len(hits))
    return Interval(0.0, 0.0, 1 - bound, len(hits)) if hits.sum() == 0 else Interval(1.0, bound, 1.0, len(hits))

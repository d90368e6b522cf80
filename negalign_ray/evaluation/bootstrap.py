"""Intervals of figures over prompts: all answers to one prompt are drawn together, as one unit.

Answers to one prompt resemble each other; drawn one by one they would claim more certainty than there is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from negalign_ray.evaluation.figures import Figure
from negalign_ray.evaluation.intervals import (
    Interval,
    Sums,
    difference_interval,
    rate_interval,
    ratio_interval,
    sums_interval,
)

Figures = dict[str, Figure]


def pooled(parts: Iterable[Sequence[Figure]]) -> Figures:
    """One figure per key over all parts (one run, or one for each seed), with one item per prompt: sums add up.

    Prompt 7 scored 0.2 under seed 0 and 0.4 under seed 1, prompt 8 scored 0.9 under seed 1 -> items (0.6, 2), (0.9, 1);
    the figure is 1.5 / 3 = 0.5, and a resample draws prompts, not answers.
    """
    collected: dict[str, list[Figure]] = {}
    for figures in parts:
        for figure in figures:
            collected.setdefault(figure.key, []).append(figure)
    return {key: _pool(figures) for key, figures in collected.items()}


def _pool(figures: Sequence[Figure]) -> Figure:
    sums: dict[int, list[float]] = {}
    behaviours: dict[int, str | None] = {}
    unnamed = 0
    for figure in figures:
        ids = figure.prompt_ids
        if ids is None:  # items of an unknown prompt stand for themselves
            ids = tuple(-1 - unnamed - index for index in range(len(figure.sums)))
            unnamed += len(ids)
        rows = zip(ids, figure.behaviours, figure.sums.numerators, figure.sums.denominators, strict=True)
        for prompt_id, behaviour, numerator, denominator in rows:
            item = sums.setdefault(prompt_id, [0.0, 0.0])
            item[0] += numerator
            item[1] += denominator
            behaviours.setdefault(prompt_id, behaviour)
    ids = tuple(sorted(sums))
    numerators, denominators = ([sums[prompt_id][part] for prompt_id in ids] for part in (0, 1))
    named = tuple(behaviours[prompt_id] for prompt_id in ids)
    return replace(figures[0], sums=Sums.of(numerators, denominators), behaviours=named, prompt_ids=ids)


def paired(first: Figure, second: Figure) -> tuple[Figure, Figure]:
    """Both, pooled before, over the prompts that both have, in the same order."""
    return _among(first, second), _among(second, first)


def _among(figure: Figure, other: Figure) -> Figure:
    assert figure.prompt_ids is not None, "pooled figures name their prompts"
    kept = np.isin(figure.prompt_ids, other.prompt_ids or ())
    sums = Sums(figure.sums.numerators[kept], figure.sums.denominators[kept])
    return replace(
        figure,
        sums=sums,
        behaviours=tuple(np.asarray(figure.behaviours, dtype=object)[kept]),
        prompt_ids=tuple(np.asarray(figure.prompt_ids)[kept].tolist()),
    )


@dataclass(frozen=True)
class Bootstrap:
    """Intervals of pooled figures; `num` of an interval counts prompts."""

    resamples: int
    seed: int

    def one(self, figure: Figure) -> Interval:
        """Where all answers agree, every resample does too; the exact bound over the prompts stands in."""
        hits, num = figure.sums.numerators.sum(), len(figure.sums)
        if figure.is_rate and hits in (0.0, figure.sums.denominators.sum()):
            return rate_interval(np.full(num, float(hits > 0)), resamples=self.resamples, seed=self.seed)
        return sums_interval(figure.sums, transform=figure.transform, resamples=self.resamples, seed=self.seed)

    def difference(self, first: Figure, second: Figure) -> Interval:
        """second - first, over the prompts that both have."""
        first, second = paired(first, second)
        return difference_interval(
            first.sums, second.sums, transform=first.transform, resamples=self.resamples, seed=self.seed
        )

    def ratio(self, first: Figure, second: Figure) -> Interval:
        """second / first, over the prompts that both have."""
        first, second = paired(first, second)
        return ratio_interval(
            first.sums, second.sums, transform=first.transform, resamples=self.resamples, seed=self.seed
        )

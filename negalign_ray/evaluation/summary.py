"""From one or two `Side`s to the dictionary that is written as `summary.json`. Keys of figures: see `figures.py`.

    {"before": {key: number}, "after": {key: number},
     "difference": {key: {"mean", "low", "high"}},      after - before, bootstrap paired by prompt, 95 %
     "ratio": {key: {"mean", "low", "high"}},           after / before, for benign_perplexity and mean_length_tokens
     "intervals": {"before": {key: {"low", "high", "num"}}, "after": {...}},
     "by_behaviour": {behaviour: {"before": ..., "after": ..., "difference": ..., "tests": ...}},
     "tests": {key: {"only_before", "only_after", "p_value"}},      of a rate: exact McNemar test
     "tests": {key: {"num_differing", "p_value"}},                  of any other figure: paired sign flips
     "win_rates": [{"judge", "prompts", "num", "wins", ...}],      of after over before: see win_rate.py
     "figures": {key: {"title", "better"}}, "heads": {name: {"kind", "direction", "threshold"}},
     "steps": n, "wall_s": s}

`num` counts prompts: a resample draws prompts, each with all its answers.
A figure without items is absent; an interval without two prompts has low = high = null. With one side only, "after" is
null and "difference", "ratio", "tests" and "win_rates" are empty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from negalign_ray.config import HeadConfig
from negalign_ray.evaluation.bootstrap import Bootstrap, Figures, pooled
from negalign_ray.evaluation.figures import figures_of
from negalign_ray.evaluation.intervals import Interval
from negalign_ray.evaluation.side import Side, require_same_items
from negalign_ray.evaluation.significance import pair_tests
from negalign_ray.evaluation.win_rate import head_rows


def summarise(
    before: Side,
    after: Side | None,
    *,
    heads: Sequence[HeadConfig],
    steps: int | None = None,
    wall_s: float | None = None,
    resamples: int = 2000,
    seed: int = 0,
    tie_margin: float = 0.0,
) -> dict[str, Any]:
    """The layout above; JSON-ready. Raises DataError when the sides were measured on different items.

    `kl_per_token` differs from the rest: each side has its own answers, paired by prompt.
    """
    if after is not None:
        require_same_items(before, after)
    bootstrap = Bootstrap(resamples, seed)
    first = pooled([figures_of(before, heads)])
    second = None if after is None else pooled([figures_of(after, heads)])
    summary = _compare(first, second, bootstrap)
    summary["by_behaviour"] = _by_behaviour(first, second, bootstrap)
    summary["win_rates"] = (
        [] if after is None else head_rows(before, after, heads, tie_margin=tie_margin, resamples=resamples, seed=seed)
    )
    summary["figures"] = {key: {"title": figure.title, "better": figure.better} for key, figure in first.items()}
    summary["heads"] = {
        head.name: {"kind": head.kind, "direction": head.direction, "threshold": head.threshold} for head in heads
    }
    return {**summary, "steps": steps, "wall_s": wall_s}


def _compare(first: Figures, second: Figures | None, bootstrap: Bootstrap) -> dict[str, Any]:
    before = {key: bootstrap.one(figure) for key, figure in first.items()}
    after = {key: bootstrap.one(figure) for key, figure in (second or {}).items()}
    both = [key for key in first if second is not None and key in second]
    tests = {} if second is None else pair_tests(first, second, seed=bootstrap.seed)
    return {
        "before": _means(before),
        "after": None if second is None else _means(after),
        "difference": {key: _triple(bootstrap.difference(first[key], second[key])) for key in both},  # type: ignore[index]
        "ratio": {
            key: _triple(bootstrap.ratio(first[key], second[key]))  # type: ignore[index]
            for key in both
            if first[key].with_ratio
        },
        "intervals": {"before": _bounds(before), "after": _bounds(after)},
        "tests": {key: asdict(test) for key, test in tests.items()},
    }


def _by_behaviour(first: Figures, second: Figures | None, bootstrap: Bootstrap) -> dict[str, Any]:
    names = sorted({name for figure in first.values() for name in figure.behaviours if name is not None})
    result: dict[str, Any] = {}
    for name in names:
        part = _compare(_only(first, name), None if second is None else _only(second, name), bootstrap)
        result[name] = {key: part[key] for key in ("before", "after", "difference", "tests")}
    return result


def _only(figures: Figures, behaviour: str) -> Figures:
    parts = ((key, figure.only(behaviour)) for key, figure in figures.items())
    return {key: part for key, part in parts if part is not None}


def _means(intervals: Mapping[str, Interval]) -> dict[str, float]:
    return {key: interval.mean for key, interval in intervals.items() if interval.mean is not None}


def _bounds(intervals: Mapping[str, Interval]) -> dict[str, dict[str, Any]]:
    return {key: {"low": item.low, "high": item.high, "num": item.num} for key, item in intervals.items()}


def _triple(interval: Interval) -> dict[str, float | None]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}

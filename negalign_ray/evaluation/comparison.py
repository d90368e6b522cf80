"""Several methods under several seeds, item by item, to the dictionary that is written as compare.json.

    {"methods", "seeds", "harm": key, "heads": {...}, "figures": {key: {"title", "better"}},
     "base":         {key: interval},                 pooled over the seeds, one finished run each
     "values":       {method: {key: interval}},
     "versus_base":  {method: {key: {"mean", "low", "high"}}},      method - base, paired by prompt
     "versus_first": {method: {key: {"mean", "low", "high"}}},      method - first method, paired by prompt
     "by_behaviour": {behaviour: {method or "base": {key: interval}}},      the harm figures
     "run_figures":  {key: {"title", "better"}},
     "runs":         {method or "base": {key: {"mean", "low", "high", "by_seed": {seed: value}}}},
     "curve", "curves": {method: {seed: [[step, smoothed value], ...]}},
     "num_runs": {method: finished}, "failed": [{"method", "seed", "error", "message"}],
     "warnings": [what a run's metrics say of its method]}

An interval is {"mean", "low", "high", "num"}: 95 % percentile bootstrap over `num` prompts. A prompt that several
seeds evaluated is one unit with all its answers, so equal prompts do not count twice. These intervals speak of other
prompts, for the seeds that were run; how much a seed changes is shown by `runs`, whose low and high are the lowest
and the highest seed. Methods are paired on the seeds that both finished and the prompts that both answered.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from negalign_ray.config import HeadConfig
from negalign_ray.evaluation.bootstrap import Bootstrap, Figures, pooled
from negalign_ray.evaluation.curves import (
    curve_points,
    relative_spread,
    roughness,
    sampled_tokens,
    smoothed,
    steps_to_target,
    total,
    trained_tokens,
)
from negalign_ray.evaluation.figures import Figure, figures_of
from negalign_ray.evaluation.intervals import Interval
from negalign_ray.evaluation.side import Side
from negalign_ray.evaluation.training_notes import guide_gain, training_warnings
from negalign_ray.metrics import Row
from negalign_ray.settings.comparison import Curve

BASE = "base"


@dataclass(frozen=True)
class RunResult:
    """One finished run."""

    method: str
    seed: int
    before: Side
    after: Side
    rows: Sequence[Row]  # of its metrics.jsonl
    steps: int
    wall_s: float


@dataclass(frozen=True)
class Failure:
    """A run that ended with an error."""

    method: str
    seed: int
    error: str  # the type's name
    message: str


def compare_runs(
    results: Sequence[RunResult],
    failures: Sequence[Failure] = (),
    *,
    methods: Sequence[str],
    heads: Sequence[HeadConfig],
    harm: HeadConfig,
    curve: Curve,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """The layout above; JSON-ready. `methods[0]` is what the others are held against."""
    bootstrap = Bootstrap(resamples, seed)
    by_method = {name: _by_seed(result for result in results if result.method == name) for name in methods}
    before = {key: figures_of(result.before, heads) for key, result in _keyed(results).items()}
    after = {key: figures_of(result.after, heads) for key, result in _keyed(results).items()}
    one_each = _by_seed(reversed(results))  # per seed the first result: the base is the same for all
    base = pooled(before[result.method, number] for number, result in one_each.items())

    def side(method: str, figures: Mapping[tuple[str, int], list[Figure]], seeds: Iterable[int]) -> Figures:
        return pooled(figures[method, number] for number in seeds)

    finished = [name for name in methods if by_method[name]]
    reported = run_figures(curve, with_guide=any(guide_gain(result.rows) is not None for result in results))
    values = {name: side(name, after, by_method[name]) for name in finished}
    versus_base = {
        name: _differences(side(name, before, by_method[name]), values[name], bootstrap) for name in finished
    }
    versus_first = {}
    for name in finished[1:] if finished[:1] == [methods[0]] else []:
        shared = [number for number in by_method[name] if number in by_method[methods[0]]]
        versus_first[name] = _differences(side(methods[0], after, shared), side(name, after, shared), bootstrap)
    return {
        "methods": list(methods),
        "seeds": sorted({result.seed for result in results} | {failure.seed for failure in failures}),
        "harm": f"{harm.name}_score",
        "heads": {head.name: {"kind": head.kind, "direction": head.direction} for head in heads},
        "figures": {key: {"title": figure.title, "better": figure.better} for key, figure in base.items()},
        "base": _each(base, bootstrap),
        "values": {name: _each(figures, bootstrap) for name, figures in values.items()},
        "versus_base": versus_base,
        "versus_first": versus_first,
        "by_behaviour": _by_behaviour({BASE: base, **values}, harm, bootstrap),
        "run_figures": reported,
        "runs": _runs(by_method, one_each, harm, curve, reported),
        "curve": curve.model_dump(),
        "curves": {name: _curves(by_method[name], curve) for name in finished},
        "num_runs": {name: len(by_method[name]) for name in methods},
        "failed": [vars(failure) for failure in failures],
        "warnings": [
            f"{result.method}, seed {result.seed}: {warning}"
            for result in results
            for warning in training_warnings(result.rows)
        ],
    }


# -- figures of prompts --------------------------------------------------------------------------------------


def _each(figures: Figures, bootstrap: Bootstrap) -> dict[str, dict[str, Any]]:
    return {key: _as_json(bootstrap.one(figure)) for key, figure in figures.items()}


def _differences(first: Figures, second: Figures, bootstrap: Bootstrap) -> dict[str, dict[str, Any]]:
    """second - first."""
    return {key: _as_json(bootstrap.difference(first[key], second[key])) for key in first if key in second}


def _as_json(interval: Interval) -> dict[str, Any]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "num": interval.num}


def _by_behaviour(sides: Mapping[str, Figures], harm: HeadConfig, bootstrap: Bootstrap) -> dict[str, Any]:
    keys = (f"{harm.name}_score", f"{harm.name}_rate")
    names = sorted({name for figures in sides.values() for key in keys for name in figures[key].behaviours if name})
    table: dict[str, Any] = {name: {} for name in names}
    for name in names:
        for who, figures in sides.items():
            parts = {key: figures[key].only(name) for key in keys}
            table[name][who] = _each({key: part for key, part in parts.items() if part is not None}, bootstrap)
    return table


# -- figures of whole runs -------------------------------------------------------------------------------------


def run_figures(curve: Curve, *, with_guide: bool = False) -> dict[str, dict[str, str]]:
    """Title and direction of the figures that a run has one of, so that the seeds are all there is to spread over."""
    bound = f"<= {curve.at_most:g}" if curve.at_most is not None else f">= {curve.at_least or 0.0:g}"
    rows = {
        "harm_per_seed": ("harm, lowest and highest seed", "lower"),
        "steps_to_target": (f"steps until {curve.metric} {bound}", "lower"),
        "roughness": (f"roughness of {curve.metric}", "lower"),
        "grad_norm_spread": ("spread of the gradient norm (std / mean)", "lower"),
        "guide_gain": ("guide: better than the zero vector, nats per token", "higher"),
        "updates": ("optimizer steps", "neither"),
        "sampled_tokens": ("sampled tokens", "neither"),
        "trained_tokens": ("trained tokens", "neither"),
        "train_s": ("seconds in training steps", "lower"),
        "wall_s": ("seconds of the whole run", "neither"),  # a measured base is reused, so the first runs take longer
    }
    if curve.at_most is None and curve.at_least is None:
        del rows["steps_to_target"]
    if not with_guide:
        del rows["guide_gain"]
    return {key: {"title": title, "better": better} for key, (title, better) in rows.items()}


def _runs(
    by_method: Mapping[str, Mapping[int, RunResult]],
    one_each: Mapping[int, RunResult],
    harm: HeadConfig,
    curve: Curve,
    reported: Mapping[str, Any],
) -> dict[str, Any]:
    measures: dict[str, Callable[[RunResult], float | None]] = {
        "harm_per_seed": lambda result: float(np.mean(result.after.harmful.scores[harm.name])),
        "steps_to_target": lambda result: steps_to_target(result.rows, curve),
        "roughness": lambda result: roughness(result.rows, curve.metric),
        "grad_norm_spread": lambda result: relative_spread(result.rows, "learner/grad_norm"),
        "guide_gain": lambda result: guide_gain(result.rows),
        "updates": lambda result: result.steps,
        "sampled_tokens": lambda result: sampled_tokens(result.rows),
        "trained_tokens": lambda result: trained_tokens(result.rows),
        "train_s": lambda result: total(result.rows, "learner/step_s"),
        "wall_s": lambda result: result.wall_s,
    }
    of_base: dict[str, Callable[[RunResult], float | None]] = {
        "harm_per_seed": lambda result: float(np.mean(result.before.harmful.scores[harm.name])),
    }
    table = {BASE: {key: _spread(one_each, measure) for key, measure in of_base.items()}}
    for name, runs in by_method.items():
        if runs:
            table[name] = {key: _spread(runs, measure) for key, measure in measures.items() if key in reported}
    return table


def _spread(runs: Mapping[int, RunResult], measure: Callable[[RunResult], float | None]) -> dict[str, Any]:
    """Mean, lowest and highest over the seeds; null as soon as one seed has no value (a target never reached)."""
    values = {number: measure(result) for number, result in sorted(runs.items())}
    known = [value for value in values.values() if value is not None]
    by_seed = {str(number): value for number, value in values.items()}
    if not known or len(known) < len(values):
        return {"mean": None, "low": None, "high": None, "by_seed": by_seed}
    return {"mean": sum(known) / len(known), "low": min(known), "high": max(known), "by_seed": by_seed}


def _curves(runs: Mapping[int, RunResult], curve: Curve) -> dict[str, list[list[float]]]:
    return {
        str(number): [list(point) for point in smoothed(curve_points(result.rows, curve), window=curve.window)]
        for number, result in sorted(runs.items())
    }


def _by_seed(results: Iterable[RunResult]) -> dict[int, RunResult]:
    return {result.seed: result for result in results}


def _keyed(results: Iterable[RunResult]) -> dict[tuple[str, int], RunResult]:
    return {(result.method, result.seed): result for result in results}

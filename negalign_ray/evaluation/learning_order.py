"""The order in which behaviours were really learned, held against the order that a diagnosis predicted.

metrics.jsonl (behaviour/NAME/margin_nats) --> a curve per behaviour --> slope, step to a common rise --> ranks --.
diagnose.json (distinguishability)         --> ranks -------------------------------------------------> Spearman's rho
"""

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from negalign_ray.errors import DataError
from negalign_ray.metrics import Row

MAX_EXACT = 7  # behaviours up to which all orders are tried (7! = 5040)
RANDOM_ORDERS = 20_000
LAST_FRAC = 0.2  # share of the steps whose mean is the final value [choice]


@dataclass(frozen=True)
class Curve:
    """A figure of one behaviour over a run. `updates` were done when it was measured; `weights` are groups."""

    updates: tuple[int, ...]
    values: tuple[float, ...]
    weights: tuple[float, ...]

    def slope(self, *, from_zero: bool) -> float:
        """Least squares per update, weighted. `from_zero`: the line starts at 0, as log-ratios do before training."""
        return _slope(self.updates, self.values, self.weights, from_zero=from_zero)

    def start(self, *, from_zero: bool) -> float:
        """Where the line of `slope` stands before the first update."""
        if from_zero:
            return 0.0
        total = math.fsum(self.weights)
        return _dot(self.weights, self.values) / total - self.slope(from_zero=False) * (
            _dot(self.weights, self.updates) / total
        )

    def final(self) -> float:
        """Mean of the last fifth of the measurements (one at least)."""
        num = max(1, round(LAST_FRAC * len(self.values)))
        return _dot(self.weights[-num:], self.values[-num:]) / sum(self.weights[-num:])

    def smooth(self) -> list[float]:
        """Running mean over the last twentieth of the run, at least three measurements: single steps are noisy."""
        width = max(3, round(len(self.values) / 20))
        means = []
        for end in range(1, len(self.values) + 1):
            part = slice(max(0, end - width), end)
            means.append(_dot(self.weights[part], self.values[part]) / sum(self.weights[part]))
        return means

    def updates_to(self, level: float) -> int | None:
        """Updates done when the smooth curve first reached `level`; None = never."""
        reached = (update for update, value in zip(self.updates, self.smooth(), strict=True) if value >= level)
        return next(reached, None)


def curves_of(rows: Sequence[Row], figure: str) -> dict[str, Curve]:
    """Behaviour -> its curve of `behaviour/NAME/figure`; steps in which it has no value are left out."""
    points: dict[str, list[tuple[int, float, float]]] = {}
    for row in rows:
        for key, value in row.items():
            name, _, last = key.removeprefix("behaviour/").rpartition("/")
            if key.startswith("behaviour/") and last == figure and value is not None:
                weight = row.get(f"behaviour/{name}/num_groups") or 1
                points.setdefault(name, []).append((int(row["step"] or 0) - 1, float(value), float(weight)))
    return {name: Curve(*map(tuple, zip(*found, strict=True))) for name, found in points.items()}  # type: ignore[arg-type]


def compare(predicted: Mapping[str, Any], rows: Sequence[Row], *, from_zero: bool) -> dict[str, Any]:
    """What `diagnose --run` writes. `from_zero`: margins are log-ratios (the method has references).

    `spearman` holds rho and the two-sided p-value (the share of all orders that agree or disagree as much) of
    the prediction by distance (the paper's), and by the distance without what chance adds, with the slope of the
    margin, and of the first one with the slope per token and with how early a common rise was reached: half of the
    largest one, each curve's from its own start; null where no margin rose.
    DataError: fewer than two behaviours have both a prediction and a curve.
    """
    margins, per_token = curves_of(rows, "margin_nats"), curves_of(rows, "margin_per_token_nats")
    accuracies = curves_of(rows, "accuracy_frac")
    names = [name for name in predicted["order"] if name in margins]
    if len(names) < 2:
        raise DataError(
            f"only {len(names)} of the behaviours {predicted['order']} have margins in this run's metrics.jsonl "
            f"({sorted(margins) or 'none'} do): a margin needs good answers (own samples or positives) and bad ones "
            "in a group. Use a method that trains on both, and the same data for diagnosis and run."
        )
    slopes = [margins[name].slope(from_zero=from_zero) for name in names]
    starts = [margins[name].start(from_zero=from_zero) for name in names]
    largest = max(margins[name].final() - start for name, start in zip(names, starts, strict=True))
    half = 0.5 * largest if largest > 0 else None
    reached = [
        None if half is None else margins[name].updates_to(start + half)
        for name, start in zip(names, starts, strict=True)
    ]
    earliness = [-math.inf if updates is None else -float(updates) for updates in reached]
    before = [predicted["behaviours"][name] for name in names]
    distances = [figures["distinguishability"] for figures in before]
    observed = order_of(slopes)
    return {
        "behaviours": {
            name: {
                "distinguishability": distances[i],
                "predicted_rank": i + 1,
                "observed_rank": observed[i],
                "margin_slope_nats": slopes[i],
                "start_margin_nats": starts[i],
                "final_margin_nats": margins[name].final(),
                "updates_to_half": reached[i],
                "final_accuracy_frac": accuracies[name].final(),
            }
            for i, name in enumerate(names)
        },
        "half_of_the_largest_rise_nats": half,
        "measure": "log-ratio to the reference" if from_zero else "log-prob (the method has no references)",
        "spearman": {
            "distinguishability_and_slope": spearman(distances, slopes),
            "corrected_and_slope": spearman([figures["corrected"] for figures in before], slopes),
            "distinguishability_and_slope_per_token": spearman(
                distances, [per_token[name].slope(from_zero=from_zero) for name in names]
            ),
            "distinguishability_and_earliness": spearman(distances, earliness),
        },
        "weight_change": weight_growth(rows),
    }


def order_of(values: Sequence[float]) -> list[int]:
    """1 for the largest value; ties in the order given."""
    ordered = sorted(range(len(values)), key=lambda i: (-values[i], i))
    return [ordered.index(i) + 1 for i in range(len(values))]


def spearman(first: Sequence[float], second: Sequence[float]) -> dict[str, float | int | None]:
    """{"rho", "p", "num"}; both None where one side is constant. Ties share the mean of their ranks."""
    ranks, others = _mean_ranks(first), _mean_ranks(second)
    rho = _correlation(ranks, others)
    if rho is None:
        return {"rho": None, "p": None, "num": len(first)}
    return {"rho": rho, "p": _p_value(ranks, others, abs(rho)), "num": len(first)}


def _p_value(ranks: list[float], others: list[float], size: float) -> float:
    """Share of the orders of `others` whose correlation with `ranks` is at least `size`, up or down."""
    if len(ranks) <= MAX_EXACT:
        orders = [list(order) for order in itertools.permutations(others)]
    else:
        generator = random.Random(0)
        orders = [others, *(generator.sample(others, len(others)) for _ in range(RANDOM_ORDERS))]
    hits = sum(abs(_correlation(ranks, order) or 0.0) >= size - 1e-12 for order in orders)
    return hits / len(orders)


def weight_growth(rows: Sequence[Row]) -> dict[str, float] | None:
    """||W - W0|| at the end, and the power of the steps that it grew with (the theory: 1 at most); None if unmeasured.

    Norms 2, 4, 8 after 1, 2, 4 steps -> power 1.
    """
    points = [(float(row["step"] or 0), float(row.get("learner/weight_change_norm") or 0.0)) for row in rows]
    logs = [(math.log(step), math.log(norm)) for step, norm in points if norm > 0 and step > 0]
    if len(logs) < 2:
        return None
    steps, norms = zip(*logs, strict=True)
    return {"final_norm": points[-1][1], "power_of_steps": _slope(steps, norms, (1.0,) * len(logs), from_zero=False)}


def _slope(xs: Sequence[float], ys: Sequence[float], weights: Sequence[float], *, from_zero: bool) -> float:
    """0 where all of `xs` are equal."""
    total = math.fsum(weights)
    middle, level = (0.0, 0.0) if from_zero else (_dot(weights, xs) / total, _dot(weights, ys) / total)
    across = [x - middle for x in xs]
    spread = math.fsum(w * x * x for w, x in zip(weights, across, strict=True))
    rise = math.fsum(w * x * (y - level) for w, x, y in zip(weights, across, ys, strict=True))
    return rise / spread if spread else 0.0


def _mean_ranks(values: Sequence[float]) -> list[float]:
    """10, 20, 20 -> 1, 2.5, 2.5"""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values
    ]


def _correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    middle = (sum(first) / len(first), sum(second) / len(second))
    a, b = [x - middle[0] for x in first], [y - middle[1] for y in second]
    scale = math.sqrt(_dot(a, a) * _dot(b, b))
    return _dot(a, b) / scale if scale else None


def _dot(first: Sequence[float], second: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(first, second, strict=True))

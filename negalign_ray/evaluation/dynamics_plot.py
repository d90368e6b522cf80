"""The picture of `negalign-ray diagnose --run`: margins and accuracies over the run, prediction against outcome, and
||W - W0||."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # not pyplot: no window system, no global state

from negalign_ray.evaluation.learning_order import curves_of
from negalign_ray.metrics import Row


def draw(outcome: Mapping[str, Any], rows: Sequence[Row], path: Path) -> None:
    """Write a PNG of what `learning_order.compare` found."""
    figure = Figure(figsize=(11, 8.5), layout="constrained")
    (margins, accuracies), (agreement, weights) = figure.subplots(2, 2)
    names = list(outcome["behaviours"])  # in the predicted order
    colours = {name: f"C{index % 10}" for index, name in enumerate(names)}
    _curves(margins, rows, "margin_nats", colours)
    half = outcome["half_of_the_largest_rise_nats"]
    for level in {row["start_margin_nats"] + half for row in outcome["behaviours"].values()} if half else ():
        margins.axhline(level, color="grey", ls="--", lw=0.8)
    margins.set_title("margin by behaviour (nats), in the predicted order", fontsize=10)
    margins.legend(fontsize=8)
    _curves(accuracies, rows, "accuracy_frac", colours)
    accuracies.set_title("accuracy by behaviour: share of pairs in the right order", fontsize=10)
    accuracies.set_ylim(-0.02, 1.02)
    _agreement(agreement, outcome, colours)
    _weights(weights, outcome, rows)
    figure.savefig(path, dpi=110)


def _curves(axis: Any, rows: Sequence[Row], figure: str, colours: Mapping[str, str]) -> None:
    curves = curves_of(rows, figure)
    for rank, (name, colour) in enumerate(colours.items(), start=1):
        curve = curves[name]
        axis.plot(curve.updates, curve.values, color=colour, lw=0.5, alpha=0.3)
        axis.plot(curve.updates, curve.smooth(), color=colour, lw=1.5, label=f"{rank}. {name}")
    axis.set_xlabel("updates done", fontsize=9)
    axis.grid(alpha=0.3)


def _agreement(axis: Any, outcome: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    distances = [outcome["behaviours"][name]["distinguishability"] for name in colours]
    middle = (min(distances) + max(distances)) / 2
    for (name, colour), distance in zip(colours.items(), distances, strict=True):
        point = (distance, outcome["behaviours"][name]["margin_slope_nats"])
        axis.plot(*point, "o", color=colour)
        side, align = (-4, "right") if distance > middle else (4, "left")
        axis.annotate(name, point, textcoords="offset points", xytext=(side, 4), ha=align, fontsize=8)
    axis.set_title(
        f"prediction and outcome: {rho_text(outcome['spearman']['distinguishability_and_slope'])}", fontsize=10
    )
    axis.set_xlabel("distinguishability before the run", fontsize=9)
    axis.set_ylabel("slope of the margin (nats per update)", fontsize=9)
    axis.margins(x=0.2)
    axis.grid(alpha=0.3)


def _weights(axis: Any, outcome: Mapping[str, Any], rows: Sequence[Row]) -> None:
    points = [(row["step"], row["learner/weight_change_norm"]) for row in rows if row.get("learner/weight_change_norm")]
    if points:
        axis.plot(*zip(*points, strict=True))
    growth = outcome["weight_change"]
    power = f", grows as steps^{growth['power_of_steps']:.2f}" if growth else ": not measured"
    axis.set_title(f"||W - W0||{power}", fontsize=10)
    axis.set_xlabel("optimizer step", fontsize=9)
    axis.grid(alpha=0.3)


def rho_text(found: Mapping[str, Any]) -> str:
    """For example `rho 0.70 (p 0.23, 5 behaviours)`."""
    if found["rho"] is None:
        return "rho undefined (all equal)"
    return f"rho {found['rho']:.2f} (p {found['p']:.2g}, {found['num']} behaviours)"

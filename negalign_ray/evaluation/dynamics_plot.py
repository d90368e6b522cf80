"""The picture of `negalign-ray diagnose --run`: margins over the run, prediction against outcome, and ||W - W0||."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # not pyplot: no window system, no global state

from negalign_ray.evaluation.learning_order import curves_of
from negalign_ray.metrics import Row


def draw(outcome: Mapping[str, Any], rows: Sequence[Row], path: Path) -> None:
    """Write a PNG of what `learning_order.compare` found."""
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    axes = figure.subplots(1, 3)
    names = list(outcome["behaviours"])  # in the predicted order
    colours = {name: f"C{index % 10}" for index, name in enumerate(names)}
    _margins(axes[0], outcome, rows, colours)
    _agreement(axes[1], outcome, colours)
    _weights(axes[2], outcome, rows)
    figure.savefig(path, dpi=110)


def _margins(axis: Any, outcome: Mapping[str, Any], rows: Sequence[Row], colours: Mapping[str, str]) -> None:
    curves = curves_of(rows, "margin_nats")
    for rank, (name, colour) in enumerate(colours.items(), start=1):
        curve = curves[name]
        axis.plot(curve.updates, curve.values, color=colour, lw=0.5, alpha=0.3)
        axis.plot(curve.updates, curve.smooth(), color=colour, lw=1.5, label=f"{rank}. {name}")
    axis.axhline(outcome["half_of_the_largest_final_margin_nats"], color="grey", ls="--", lw=0.8)
    axis.set_title("margin by behaviour (nats), in the predicted order", fontsize=10)
    axis.set_xlabel("updates done", fontsize=9)
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)


def _agreement(axis: Any, outcome: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    for name, colour in colours.items():
        found = outcome["behaviours"][name]
        point = (found["distinguishability"], found["margin_slope_nats"])
        axis.plot(*point, "o", color=colour)
        axis.annotate(name, point, textcoords="offset points", xytext=(4, 4), fontsize=8)
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

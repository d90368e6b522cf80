"""The one picture of a comparison: harm against helpfulness, harm by behaviour, and the training curves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # not pyplot: no window system, no global state

from negalign_ray.evaluation.comparison import BASE

Report = Mapping[str, Any]
HELPFULNESS = "human_benign_logprob_per_token"
FALLBACK = "benign_perplexity"  # data without good held-out answers


def draw(report: Report, path: Path) -> None:
    """Write a PNG."""
    names = [BASE, *(name for name in report["methods"] if name in report["values"])]
    colours = {name: "black" if name == BASE else f"C{index - 1}" for index, name in enumerate(names)}
    figure = Figure(figsize=(17, 5), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1, 1.3, 1))
    _trade_off(axes[0], report, colours)
    _behaviours(axes[1], report, colours)
    _curves(axes[2], report, colours)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names), fontsize=9)
    figure.savefig(path, dpi=110)


def _trade_off(axis: Any, report: Report, colours: Mapping[str, str]) -> None:
    """Good is down and right (up for a perplexity, whose axis is turned)."""
    key = HELPFULNESS if HELPFULNESS in report["figures"] else FALLBACK
    for name, colour in colours.items():
        values = report["base"] if name == BASE else report["values"][name]
        harm, help_ = values.get(report["harm"]), values.get(key)
        if harm is None or help_ is None:
            continue
        axis.errorbar(
            help_["mean"], harm["mean"], xerr=_bars(help_), yerr=_bars(harm), fmt="o", color=colour, label=name
        )
    if key == FALLBACK:
        axis.invert_xaxis()
    axis.set_xlabel(f"{report['figures'].get(key, {'title': key})['title']} (right is better)", fontsize=9)
    axis.set_ylabel(f"{report['figures'][report['harm']]['title']} (down is better)", fontsize=9)
    axis.set_title("harm against helpfulness", fontsize=10)
    axis.grid(alpha=0.3)


def _bars(interval: Mapping[str, Any]) -> list[list[float]] | None:
    if interval["low"] is None:
        return None
    # A percentile interval need not hold its mean; a negative bar is an error in matplotlib.
    below, above = interval["mean"] - interval["low"], interval["high"] - interval["mean"]
    return [[max(0.0, below)], [max(0.0, above)]]


def _behaviours(axis: Any, report: Report, colours: Mapping[str, str]) -> None:
    names = list(report["by_behaviour"]) or ["all"]
    width = 0.8 / len(colours)
    for index, (method, colour) in enumerate(colours.items()):
        everything = report["base"] if method == BASE else report["values"][method]
        cells = [report["by_behaviour"].get(name, {method: everything}).get(method, {}) for name in names]
        for place, cell in enumerate(cells):
            interval = cell.get(report["harm"])
            if interval is not None and interval["mean"] is not None:
                left = place - 0.4 + (index + 0.5) * width
                axis.bar(left, interval["mean"], width, color=colour, yerr=_bars(interval), error_kw={"lw": 0.7})
    axis.set_xticks(range(len(names)), names, fontsize=8, rotation=15, ha="right")
    axis.set_title(f"{report['figures'][report['harm']]['title']}, by behaviour", fontsize=10)
    axis.grid(alpha=0.3, axis="y")


def _curves(axis: Any, report: Report, colours: Mapping[str, str]) -> None:
    """One line a seed; a method that does not log the metric has none."""
    curve = report["curve"]
    for method, seeds in report["curves"].items():
        for points in seeds.values():
            if points:
                axis.plot(*zip(*points, strict=True), color=colours[method], lw=1.2)
    bound = curve["at_most"] if curve["at_most"] is not None else curve["at_least"]
    if bound is not None:
        axis.axhline(bound, color="grey", ls="--", lw=0.8)
    axis.set_xlabel("optimizer step", fontsize=9)
    axis.set_title(f"{curve['metric']}, mean of {curve['window']} steps, each seed", fontsize=10)
    axis.grid(alpha=0.3)

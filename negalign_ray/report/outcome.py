"""Before and after as rows: values with intervals, and the change drawn as a whisker around zero.

The positions of a whisker are percent of its width: 50 is zero, and the widest bound of the row lies 6 from an edge.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from negalign_ray.evaluation.table import verdict, verdict_on
from negalign_ray.report.read import RunFiles
from negalign_ray.report.verdict import SIDE_EFFECTS, harm_key, interval_text, shown

Interval = Mapping[str, float | None]
BETTER = {"lower": "lower is better", "higher": "higher is better", "unchanged": "should stay", "neither": ""}
ALSO_SHOWN = ("kl_per_token", "entropy_per_token")
MARGIN = 6.0  # percent of a drawing's width that stays free on either side


@dataclass(frozen=True)
class Cell:
    value: str
    interval: str = ""  # "" = none


@dataclass(frozen=True)
class Whisker:
    """Percent of the width; a point without an interval has low = mean = high."""

    low: float
    mean: float
    high: float


@dataclass(frozen=True)
class FigureRow:
    key: str
    title: str
    better: str
    before: Cell
    after: Cell
    change: Cell
    whisker: Whisker | None
    p_value: str  # of the test on the pairs; "" = none
    verdict: str  # better | worse | unclear | changed | ""
    is_main: bool  # shown at once; the others are folded away


@dataclass(frozen=True)
class BehaviourRow:
    """Harm of one behaviour; `at_before` and `at_after` are percent of the drawing's width."""

    name: str
    before: str
    after: str
    change: Cell
    p_value: str
    verdict: str
    at_before: float
    at_after: float


def figure_rows(run: RunFiles) -> list[FigureRow]:
    """One for every figure of the summary, main ones first; empty where nothing was measured."""
    if not run.is_measured:
        return []
    rows = [_figure_row(run.summary, key) for key in run.summary["figures"]]
    return sorted(rows, key=lambda row: not row.is_main)  # stable: the order of the summary inside each half


def _figure_row(summary: Mapping[str, Any], key: str) -> FigureRow:
    figure, change = summary["figures"][key], summary["difference"].get(key)
    heads = {f"{name}_{what}" for name in summary.get("heads", {}) for what in ("score", "rate")}
    return FigureRow(
        key=key,
        title=figure["title"],
        better=BETTER.get(figure["better"], ""),
        before=side_cell(summary, "before", key),
        after=side_cell(summary, "after", key),
        change=change_cell(change),
        whisker=whisker(change),
        p_value=p_text(summary.get("tests", {}).get(key)),
        verdict=verdict_on(summary, key),
        is_main=key in heads or key in SIDE_EFFECTS or key in ALSO_SHOWN,
    )


def side_cell(summary: Mapping[str, Any], side: str, key: str) -> Cell:
    value, bounds = (summary[side] or {}).get(key), summary["intervals"][side].get(key)
    if value is None or bounds is None or bounds["low"] is None:
        return Cell(shown(value))
    return Cell(shown(value), f"{shown(bounds['low'])} to {shown(bounds['high'])}")


def change_cell(change: Interval | None) -> Cell:
    if change is None or change["mean"] is None:
        return Cell(shown(None))
    interval = "" if change["low"] is None else interval_text(change)
    return Cell(shown(change["mean"], sign=True), interval)


def p_text(test: Mapping[str, Any] | None) -> str:
    """0.0001 -> "p < 0.001"; "" without a test, and where no prompt differs."""
    if test is None or test["p_value"] == 1.0:
        return ""
    return "p < 0.001" if test["p_value"] < 0.001 else f"p = {shown(test['p_value'])}"


def whisker(change: Interval | None) -> Whisker | None:
    """(-0.4, -0.2, 0.0) -> 6, 28, 50. None without a change to draw."""
    if change is None or change["mean"] is None:
        return None
    mean, low, high = change["mean"], change["low"], change["high"]
    low, high = (mean if low is None else low), (mean if high is None else high)
    widest = max(abs(low), abs(mean), abs(high)) or 1.0
    at = [round(50.0 + value / widest * (50.0 - MARGIN), 2) for value in (low, mean, high)]
    return Whisker(*at)


def behaviour_rows(run: RunFiles) -> list[BehaviourRow]:
    """Harm by behaviour, the largest fall first; empty without behaviours or with one side only."""
    key = harm_key(run.summary) if run.is_compared else None
    if key is None:
        return []
    parts = {
        name: part
        for name, part in run.summary.get("by_behaviour", {}).items()
        if key in part["before"] and key in (part["after"] or {})
    }
    values = [part[side][key] for part in parts.values() for side in ("before", "after")]
    scale = _Scale(min(0.0, *values), max(0.0, *values)) if values else None
    rows = [_behaviour_row(name, part, key, scale) for name, part in parts.items() if scale]
    order = {name: part["after"][key] - part["before"][key] for name, part in parts.items()}
    return sorted(rows, key=lambda row: order[row.name])


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float

    def at(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(MARGIN + share * (100.0 - 2 * MARGIN), 2)


def _behaviour_row(name: str, part: Mapping[str, Any], key: str, scale: _Scale) -> BehaviourRow:
    before, after, change = part["before"][key], part["after"][key], part["difference"].get(key)
    test = part.get("tests", {}).get(key)
    return BehaviourRow(
        name=name,
        before=shown(before),
        after=shown(after),
        change=change_cell(change),
        p_value=p_text(test),
        verdict=verdict(change, "lower", test=test),
        at_before=scale.at(before),
        at_after=scale.at(after),
    )

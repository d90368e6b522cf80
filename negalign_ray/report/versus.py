"""Several runs held against each other: what each model has after training, and how far it is from the first run's.

The difference from the first run is paired by prompt where both runs kept every item (evaluation.json), were asked the
same prompts and were judged by the same heads. Elsewhere there is none: two intervals side by side say less than
they seem to.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from negalign_ray.config import HeadConfig
from negalign_ray.errors import NegalignError
from negalign_ray.evaluation.bootstrap import Bootstrap, Figures, pooled
from negalign_ray.evaluation.figures import figures_of
from negalign_ray.evaluation.side import Side
from negalign_ray.evaluation.significance import pair_tests
from negalign_ray.evaluation.table import is_clear
from negalign_ray.report.outcome import Cell, FigureRow, change_cell, figure_rows
from negalign_ray.report.read import RunFiles
from negalign_ray.report.sample_files import evaluated_prompts
from negalign_ray.report.verdict import NOTHING

RESAMPLES = 2000


@dataclass(frozen=True)
class VersusCell:
    after: Cell
    minus_first: Cell | None  # None: of the first run itself, or not comparable
    differs: bool  # `minus_first` is clear: its interval excludes zero, and the test on the same pairs agrees


@dataclass(frozen=True)
class VersusRow:
    title: str
    better: str
    cells: tuple[VersusCell, ...]  # one a run


@dataclass(frozen=True)
class Versus:
    rows: tuple[VersusRow, ...]
    unpaired: tuple[tuple[str, str], ...]  # (run, why it has no difference from the first one)


def versus(runs: Sequence[RunFiles]) -> Versus:
    """The main figures of every run that was measured before and after; no rows for fewer than two runs."""
    tables = [{row.key: row for row in figure_rows(run) if row.is_main and run.is_compared} for run in runs]
    if len(runs) < 2:
        return Versus((), ())
    differences: list[Mapping[str, Any]] = [{}]
    unpaired: list[tuple[str, str]] = []
    first = _Measured.of(runs[0])
    for run in runs[1:]:
        other = _Measured.of(run)
        why = _why_unpaired(first, other)
        if why:
            unpaired.append((run.name, why))
        differences.append({} if why else _differences(first, other))
    keys = list(dict.fromkeys(key for table in tables for key in table))
    return Versus(tuple(_row(key, tables, differences) for key in keys), tuple(unpaired))


@dataclass(frozen=True)
class _Measured:
    """What must be equal for two runs to be paired, and the figures of the model after training."""

    figures: Figures | None
    prompts: str = ""  # a digest
    heads: str = ""

    @classmethod
    def of(cls, run: RunFiles) -> "_Measured":
        try:
            side = Side.from_json(run.sides["after"])
            figures = pooled([figures_of(side, heads_of(run))])
        except (KeyError, TypeError, ValueError, NegalignError):  # an older layout, or a run that is not finished
            return cls(None)
        prompts = hashlib.sha256("\0".join(evaluated_prompts(run.path)).encode()).hexdigest()
        settings = [
            [head.get(part) for part in ("name", "kind", "target", "label", "input", "threshold", "direction")]
            for head in run.setting("evaluation.heads", ())
        ]
        return cls(figures, prompts, json.dumps(settings))


def heads_of(run: RunFiles) -> list[HeadConfig]:
    """The judges of the evaluation, enough of them to name figures. KeyError for a summary of an older layout."""
    return [
        HeadConfig(name=name, kind=head["kind"], target="", direction=head["direction"], threshold=head["threshold"])
        for name, head in run.summary["heads"].items()
    ]


def _why_unpaired(first: _Measured, other: _Measured) -> str:
    if first.figures is None:
        return "the first run has no evaluation.json to pair with"
    if other.figures is None:
        return "it has no evaluation.json"
    if first.prompts != other.prompts:
        return "it was evaluated on other prompts"
    return "it was judged by other heads" if first.heads != other.heads else ""


def _differences(first: _Measured, other: _Measured) -> dict[str, dict[str, Any]]:
    """other - first: {key: {"mean", "low", "high", "test"}}, the test being None or {"p_value"}."""
    assert first.figures is not None, "checked by _why_unpaired"
    assert other.figures is not None, "checked by _why_unpaired"
    bootstrap = Bootstrap(RESAMPLES, seed=0)
    tests = pair_tests(first.figures, other.figures)
    found: dict[str, dict[str, Any]] = {}
    for key, figure in first.figures.items():
        if key in other.figures:
            item, test = bootstrap.difference(figure, other.figures[key]), tests.get(key)
            found[key] = {"mean": item.mean, "low": item.low, "high": item.high}
            found[key]["test"] = None if test is None else {"p_value": test.p_value}
    return found


def _row(key: str, tables: Sequence[Mapping[str, FigureRow]], differences: Sequence[Mapping[str, Any]]) -> VersusRow:
    named = next(table[key] for table in tables if key in table)
    cells = [
        VersusCell(
            after=table[key].after if key in table else Cell(NOTHING),
            minus_first=change_cell(difference[key]) if key in difference else None,
            differs=key in difference and is_clear(difference[key], difference[key]["test"]),
        )
        for table, difference in zip(tables, differences, strict=True)
    ]
    return VersusRow(named.title, named.better, tuple(cells))

"""What a finished run left behind, for a notebook: the table before and after, the answers, the metrics, the model."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

from negalign_ray.config import Config
from negalign_ray.errors import DataError
from negalign_ray.evaluation.table import ARROWS, HEADINGS, rows_of, verdict_on
from negalign_ray.metrics import Row, read_metrics
from negalign_ray.settings import load_config

MAX_SHOWN = 8  # figures in the plain text
COLOURS = {"better": "#1a7f37", "worse": "#cf222e"}  # on light and on dark


@dataclass(frozen=True)
class Figure:
    """One line of the table; numbers are None where nothing could be measured. Units are in the title."""

    key: str
    title: str
    before: float | None
    after: float | None
    difference: float | None  # after - before, paired by prompt
    low: float | None  # 95 % interval of the difference
    high: float | None
    better: str  # which way is: "lower", "higher", "unchanged" or "neither"
    verdict: str  # "better", "worse", "changed", "unclear" (could be chance), or "" without an interval


@dataclass(frozen=True)
class Run:
    """A finished run; everything is read from its folder when it is asked for."""

    folder: Path
    summary: Mapping[str, Any]  # summary.json

    @property
    def model(self) -> Path:
        """The aligned model, as `transformers` and vLLM load it."""
        return self.folder / "model"

    @property
    def report(self) -> Path | None:
        """report.html, where there is one."""
        path = self.folder / "report.html"
        return path if path.is_file() else None

    @cached_property
    def config(self) -> Config:
        return load_config(file=self.folder / "config.yaml")

    @cached_property
    def figures(self) -> Mapping[str, Figure]:
        """By key, e.g. `run.figures["benign_perplexity"].after`; empty with `evaluation.enabled=false`."""
        return {figure.key: figure for figure in _figures(self.summary)}

    def answers(self) -> list[dict[str, Any]]:
        """Every evaluated prompt with the answer before and after. They may offend."""
        path = self.folder / "samples" / "evaluation.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines]

    def metrics(self) -> list[Row]:
        """One row per optimizer step, see docs/metrics.md."""
        return read_metrics(self.folder)

    def __repr__(self) -> str:
        lines = [self._headline()]
        shown = [figure for figure in self.figures.values() if figure.verdict in ("better", "worse", "changed")]
        lines += [f"  {_line(figure)}" for figure in shown[:MAX_SHOWN]]
        if len(self.figures) > len(shown[:MAX_SHOWN]):
            lines.append(f"  {len(self.figures)} figures in all: .figures; texts: .answers(); model: {self.model}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """The table, for a notebook. No text of a model is shown."""
        head = "".join(f"<th style='text-align:left'>{escape(name)}</th>" for name in HEADINGS)
        body = "".join(_html_row(row.cells) for row in rows_of(self.summary, intervals=False)) if self.figures else ""
        report = f" · <a href='{escape(self.report.as_uri())}'>report</a>" if self.report else ""
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if body else ""
        return f"<p>{escape(self._headline())}{report}</p>{table}"

    def _headline(self) -> str:
        config, summary = self.config, self.summary
        stopped = f", stopped by {summary['stopped_by']['guard']}" if summary.get("stopped_by") else ""
        return f"{config.method.name} on {config.model.path}: {summary['steps']} steps{stopped} in {self.folder}"


def open_run(folder: str | Path) -> Run:
    """A run that has ended, by its folder. DataError when there is none."""
    folder = Path(folder).expanduser().resolve()
    path = folder / "summary.json"
    if not path.is_file():
        raise DataError(f"{path} does not exist; name the folder of a run that has ended, <run.dir>/<run.name>.")
    return Run(folder, json.loads(path.read_text(encoding="utf-8")))


def _figures(summary: Mapping[str, Any]) -> Iterator[Figure]:
    for key, figure in summary.get("figures", {}).items():
        difference = summary["difference"].get(key) or {"mean": None, "low": None, "high": None}
        yield Figure(
            key=key,
            title=figure["title"],
            before=summary["before"].get(key),
            after=(summary["after"] or {}).get(key),
            difference=difference["mean"],
            low=difference["low"],
            high=difference["high"],
            better=figure["better"],
            verdict=verdict_on(summary, key),
        )


def _line(figure: Figure) -> str:
    arrow = ARROWS[figure.better]
    return f"{figure.verdict:7} {arrow} {figure.title}: {figure.before:.4g} -> {figure.after:.4g}"


def _html_row(cells: tuple[str, ...]) -> str:
    style = f" style='color:{COLOURS[cells[-1]]}'" if cells[-1] in COLOURS else ""
    return f"<tr{style}>" + "".join(f"<td style='text-align:left'>{escape(cell)}</td>" for cell in cells) + "</tr>"

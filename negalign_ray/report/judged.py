"""Figures of an evaluation that are no means over prompts: win rates, and benchmarks of lm_eval."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from negalign_ray.report.read import RunFiles
from negalign_ray.report.verdict import shown


@dataclass(frozen=True)
class PlainTable:
    title: str
    note: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_texts: int  # leading columns that hold no numbers


def judged_tables(run: RunFiles) -> list[PlainTable]:
    """Those that the summary has."""
    tables = []
    if wins := tuple(map(_win_row, run.summary.get("win_rates") or ())):
        headings = ("Judge", "Prompts", "Win rate", "95 % interval", "Wins", "Ties", "Losses", "p")
        note = "Prompt by prompt; a tie is half a win. Above 0.5 the model after training is preferred."
        tables.append(PlainTable("After against before", note, headings, wins, 2))
    if benchmarks := tuple(_benchmark_rows(run.summary.get("lm_eval") or {})):
        headings = ("Task", "Metric", *(side.capitalize() for side in run.summary["lm_eval"]))
        tables.append(PlainTable("Benchmarks of lm_eval", "With their standard errors.", headings, benchmarks, 2))
    return tables


def _win_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    rate = row["win_rate"]
    interval = "" if rate["low"] is None else f"{shown(rate['low'])} to {shown(rate['high'])}"
    counts = (str(row[name]) for name in ("wins", "ties", "losses"))
    return str(row["judge"]), str(row["prompts"]), shown(rate["mean"]), interval, *counts, shown(row["p_value"])


def _benchmark_rows(sides: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    keys = {(task, metric): None for tasks in sides.values() for task, metrics in tasks.items() for metric in metrics}
    for task, metric in keys:
        yield task, metric, *(_benchmark_cell(tasks.get(task, {}).get(metric)) for tasks in sides.values())


def _benchmark_cell(value: Mapping[str, float | None] | None) -> str:
    if value is None:
        return shown(None)
    error = value.get("stderr")
    return shown(value["value"]) if error is None else f"{shown(value['value'])} ± {shown(error)}"

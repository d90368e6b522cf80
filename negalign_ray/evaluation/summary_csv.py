"""A summary as one CSV file: a line for every figure, every figure of a behaviour, every win rate and every benchmark.

`kind` is figure, win_rate or benchmark. Of a figure, `before` and `after` are the two models (one model alone stands in
`before`). A win rate is that of `after` over `before`, its counts are pairs of answers; a benchmark's low and high are
one standard error away.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

SIDES = ("before", "after")
COUNTS = ("wins", "ties", "losses", "unreadable", "contradictions", "first_frac")  # of a win rate: see win_rate.py
COLUMNS = (
    *("kind", "name", "title", "behaviour", "better"),
    *(f"{side}{part}" for side in SIDES for part in ("", "_low", "_high")),
    *("num", "difference", "difference_low", "difference_high", "p_value", *COUNTS),
)
Line = dict[str, Any]


def summary_csv(summary: Mapping[str, Any]) -> str:
    """Of what `summary.summarise` returns, also with "lm_eval"; cells without a value are empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for lines in (_figures(summary), _behaviours(summary), _win_rates(summary), _benchmarks(summary)):
        writer.writerows(lines)
    return file.getvalue()


def _figures(summary: Mapping[str, Any]) -> Iterator[Line]:
    for key, figure in summary["figures"].items():
        line = {"kind": "figure", "name": key, "title": figure["title"], "better": figure["better"]}
        line |= _values(summary, key)
        for side in SIDES:
            bounds = summary["intervals"][side].get(key)
            if bounds is not None:
                line |= {f"{side}_low": bounds["low"], f"{side}_high": bounds["high"], "num": bounds["num"]}
        yield line


def _behaviours(summary: Mapping[str, Any]) -> Iterator[Line]:
    for behaviour, part in summary["by_behaviour"].items():
        for key, figure in summary["figures"].items():
            values = _values(part, key)
            if values:
                line = {"kind": "figure", "name": key, "title": figure["title"], "better": figure["better"]}
                yield line | {"behaviour": behaviour} | values


def _values(part: Mapping[str, Any], key: str) -> Line:
    values = {side: part[side][key] for side in SIDES if part[side] and key in part[side]}
    difference = part["difference"].get(key)
    if difference is not None:
        values |= {"difference": difference["mean"]}
        values |= {f"difference_{bound}": difference[bound] for bound in ("low", "high")}
    test = part["tests"].get(key)
    return values | ({} if test is None else {"p_value": test["p_value"]})


def _win_rates(summary: Mapping[str, Any]) -> Iterator[Line]:
    for row in summary["win_rates"]:
        rate = row["win_rate"]
        yield {
            "kind": "win_rate",
            "name": row["judge"],
            "title": f"{row['prompts']} prompts",
            "better": "higher",
            "after": rate["mean"],
            "after_low": rate["low"],
            "after_high": rate["high"],
            "num": row["num"],
            "p_value": row["p_value"],
            **{column: row[column] for column in COUNTS if column in row},
        }


def _benchmarks(summary: Mapping[str, Any]) -> Iterator[Line]:
    sides = summary.get("lm_eval", {})
    columns = dict(zip(sides, SIDES, strict=False))
    lines: dict[tuple[str, str], Line] = {}
    for side, tasks in sides.items():
        for task, metrics in tasks.items():
            for metric, found in metrics.items():
                line = lines.setdefault((task, metric), {"kind": "benchmark", "name": task, "title": metric})
                value, error, column = found["value"], found["stderr"], columns[side]
                line[column] = value
                if error is not None:
                    line |= {f"{column}_low": value - error, f"{column}_high": value + error}
    yield from lines.values()

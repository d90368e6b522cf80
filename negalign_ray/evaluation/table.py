"""A summary for people: a rich table for the terminal, the same rows as Markdown for documents.

Reads what `summary.summarise` returns, also from a summary.json of an earlier run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from negalign_ray.evaluation.training_notes import note_lines

ARROWS = {"lower": "↓", "higher": "↑", "unchanged": "=", "neither": " "}
HEADINGS = ("", "before", "after", "difference [95 %]", "", "verdict")
COLOURS = {"better": "green", "worse": "red"}
NO_TEXT = "-"
ALPHA = 0.05  # the level that belongs to intervals of 95 %


@dataclass(frozen=True)
class Row:
    """One figure, formatted."""

    title: str
    before: str
    after: str
    difference: str
    arrow: str  # which way is better
    verdict: str  # "better" | "worse" | "unclear" | "changed" | ""

    @property
    def cells(self) -> tuple[str, ...]:
        return self.title, self.before, self.after, self.difference, self.arrow, self.verdict


def number(value: float | None, *, sign: bool = False) -> str:
    """Three decimals below 10, two below 100, one above; "-" for a missing one."""
    if value is None:
        return NO_TEXT
    decimals = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    text = f"{value:{'+' if sign else ''}.{decimals}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def excludes_zero(interval: Mapping[str, float | None] | None) -> bool:
    """False without an interval."""
    if interval is None or interval["low"] is None or interval["high"] is None:
        return False
    return interval["low"] > 0 or interval["high"] < 0


def verdict(difference: Mapping[str, float | None] | None, better: str, *, p_value: float | None = None) -> str:
    """What the paired interval allows to say: only a change whose interval excludes zero is called one. For a rate, the
    exact test (`p_value`) must agree: intervals of few differing prompts are too narrow (significance.py)."""
    if difference is None or difference["low"] is None or difference["high"] is None:
        return ""
    if not excludes_zero(difference) or (p_value is not None and p_value >= ALPHA):
        return "unclear"
    if better not in {"lower", "higher"}:
        return "changed"
    return "better" if (difference["high"] < 0) == (better == "lower") else "worse"


def _value_cell(summary: Mapping[str, Any], side: str, key: str, *, intervals: bool) -> str:
    values, bounds = summary[side] or {}, summary["intervals"][side].get(key)
    if key not in values:
        return NO_TEXT
    text = number(values[key])
    if not intervals:
        return text
    return (
        text
        if bounds is None or bounds["low"] is None
        else f"{text} [{number(bounds['low'])}, {number(bounds['high'])}]"
    )


def _difference_cell(difference: Mapping[str, float | None] | None) -> str:
    if difference is None or difference["mean"] is None:
        return NO_TEXT
    text = number(difference["mean"], sign=True)
    if difference["low"] is None:
        return text
    return f"{text} [{number(difference['low'], sign=True)}, {number(difference['high'], sign=True)}]"


def verdict_on(summary: Mapping[str, Any], key: str) -> str:
    """On one figure of a summary; one from before there were tests of rates rests on the interval alone."""
    test = summary.get("tests", {}).get(key)
    p_value = None if test is None else test["p_value"]
    return verdict(summary["difference"].get(key), summary["figures"][key]["better"], p_value=p_value)


def rows_of(summary: Mapping[str, Any], *, intervals: bool = True) -> list[Row]:
    """`intervals`: show those of each side too, not only that of the difference."""
    rows = []
    for key, figure in summary["figures"].items():
        difference = summary["difference"].get(key)
        rows.append(
            Row(
                title=figure["title"],
                before=_value_cell(summary, "before", key, intervals=intervals),
                after=_value_cell(summary, "after", key, intervals=intervals),
                difference=_difference_cell(difference),
                arrow=ARROWS[figure["better"]],
                verdict=verdict_on(summary, key),
            )
        )
    return rows


def summary_table(summary: Mapping[str, Any], *, title: str = "Before and after", intervals: bool = False) -> Table:
    """Fits 100 columns (140 with `intervals`); titles wrap in less. With one side only: its figures and intervals."""
    compared = summary["after"] is not None
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    headings = HEADINGS if compared else ("", "value")
    table.caption_justify = "left"
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index in {0, 5} else "right", no_wrap=index > 0)
    for row in rows_of(summary, intervals=intervals or not compared):
        cells = [escape(cell) for cell in row.cells]  # brackets of intervals are not markup
        if row.verdict in COLOURS:
            cells[5] = f"[{COLOURS[row.verdict]}]{row.verdict}[/]"
        table.add_row(*(cells if compared else cells[:2]))
    table.caption = "\n".join([_caption(summary), *note_lines(summary)])
    return table


def summary_markdown(summary: Mapping[str, Any]) -> str:
    """The same rows as a Markdown table, with a line on steps and time; then win rates and exact tests, if any."""
    compared = summary["after"] is not None
    headings = ("figure", *HEADINGS[1:4], "better", HEADINGS[5]) if compared else ("figure", "value")
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for row in rows_of(summary):
        cells = [cell.replace("|", "\\|").strip() for cell in (row.cells if compared else row.cells[:2])]
        lines.append("| " + " | ".join(cells) + " |")
    caption = _caption(summary)
    lines += ["", caption] if caption else []
    lines += [line for note in note_lines(summary) for line in ("", note)]
    return "\n".join([*lines, *_win_rate_lines(summary), *_test_lines(summary), *_benchmark_lines(summary)]) + "\n"


def win_rate_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """judge, prompts, win rate of after over before with its interval, wins/ties/losses, unreadable, p of the sign
    test; formatted."""
    rows: list[tuple[str, ...]] = []
    for row in summary.get("win_rates", []):
        rate = row["win_rate"]
        interval = "" if rate["low"] is None else f" [{number(rate['low'])}, {number(rate['high'])}]"
        counts = f"{row['wins']}/{row['ties']}/{row['losses']}"
        unreadable, p_value = str(row["unreadable"]), number(row["p_value"])
        rows.append((row["judge"], row["prompts"], number(rate["mean"]) + interval, counts, unreadable, p_value))
    return rows


WIN_HEADINGS = ("judge", "prompts", "win rate [95 %]", "wins/ties/losses", "unreadable", "p")


def win_rate_table(summary: Mapping[str, Any]) -> Table | None:
    """For the terminal; None without win rates."""
    rows = win_rate_rows(summary)
    if not rows:
        return None
    table = Table(title="After against before", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(WIN_HEADINGS):
        table.add_column(heading, justify="left" if index < 2 else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _win_rate_lines(summary: Mapping[str, Any]) -> list[str]:
    lines = _markdown(
        "After against before, prompt by prompt (a tie is half a win):", WIN_HEADINGS, win_rate_rows(summary)
    )
    error = summary.get("judge_error")
    return lines if error is None else [*lines, "", f"The judge gave no win rates: {error}"]


def _test_lines(summary: Mapping[str, Any]) -> list[str]:
    """Rates that changed on some prompt."""
    rows = [
        (
            summary["figures"][key]["title"],
            str(test["only_before"]),
            str(test["only_after"]),
            number(test["p_value"]),
        )
        for key, test in summary.get("tests", {}).items()
        if test["only_before"] + test["only_after"]
    ]
    headings = ("rate", "only before", "only after", "p")
    return _markdown("Prompts that count on one side only (exact McNemar test):", headings, rows)


def benchmark_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What lm_eval measured: task, metric, one cell for each model (value ± standard error); formatted."""
    sides = summary.get("lm_eval", {})
    keys = {(task, metric): None for tasks in sides.values() for task, metrics in tasks.items() for metric in metrics}
    return [
        (task, metric, *(_benchmark_cell(sides[side].get(task, {}).get(metric)) for side in sides))
        for task, metric in keys
    ]


def _benchmark_cell(value: Mapping[str, float | None] | None) -> str:
    if value is None:
        return NO_TEXT
    error = "" if value["stderr"] is None else f" ± {number(value['stderr'])}"
    return number(value["value"]) + error


def _benchmark_lines(summary: Mapping[str, Any]) -> list[str]:
    headings = ("task", "metric", *summary.get("lm_eval", {}))
    return _markdown("Benchmarks of lm_eval (± standard error):", headings, benchmark_rows(summary))


def _markdown(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table with a line before it; nothing without rows."""
    if not rows:
        return []
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (headings, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return ["", title, "", lines[0], "|" + "---|" * len(headings), *lines[1:]]


def _caption(summary: Mapping[str, Any]) -> str:
    parts = []
    if summary["steps"] is not None:
        parts.append(f"{summary['steps']} steps")
    if summary["wall_s"] is not None:
        parts.append(f"{summary['wall_s']:.0f} s")
    if summary["after"] is not None:
        parts.append("↓ lower is better, ↑ higher, = should stay; unclear: could be chance")
    return " · ".join(parts)

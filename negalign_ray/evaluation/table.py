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


def is_clear(difference: Mapping[str, float | None] | None, test: Mapping[str, Any] | None) -> bool:
    """Both the paired interval excludes zero and the test on the same pairs agrees: intervals of few prompts are too
    narrow (significance.py). Without a test (a summary from before there was one) the interval decides alone."""
    return excludes_zero(difference) and (test is None or test["p_value"] < ALPHA)


def verdict(
    difference: Mapping[str, float | None] | None, better: str, *, test: Mapping[str, Any] | None = None
) -> str:
    """What interval and test allow to say: only a clear change is called one."""
    if difference is None or difference["low"] is None or difference["high"] is None:
        return ""
    if not is_clear(difference, test):
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
    """On one figure of a summary."""
    test = summary.get("tests", {}).get(key)
    return verdict(summary["difference"].get(key), summary["figures"][key]["better"], test=test)


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
    """judge, prompts, win rate of after over before with its interval, wins/ties/losses, p of the sign test; of a
    judge that was asked in both orders: unreadable and contradictory pairs, share of the preferences that name the
    answer shown first. Formatted."""
    rows: list[tuple[str, ...]] = []
    for row in summary.get("win_rates", []):
        rate = row["win_rate"]
        interval = "" if rate["low"] is None else f" [{number(rate['low'])}, {number(rate['high'])}]"
        counts = f"{row['wins']}/{row['ties']}/{row['losses']}"
        habits = str(row.get("contradictions", NO_TEXT)), number(row.get("first_frac"))
        cells = (number(rate["mean"]) + interval, counts, number(row["p_value"]), str(row["unreadable"]), *habits)
        rows.append((row["judge"], row["prompts"], *cells))
    return rows


WIN_HEADINGS = ("judge", "prompts", "win rate [95 %]", "wins/ties/losses", "p", "unreadable", "contradictory", "first")
WIN_NOTE = (
    "Of a judge that sees both answers, twice: pairs without a readable reply, pairs whose verdict follows the place "
    "of an answer, and how often it prefers the answer shown first (0.5: no such habit)."
)


def win_rate_table(summary: Mapping[str, Any]) -> Table | None:
    """For the terminal; None without win rates."""
    rows = win_rate_rows(summary)
    if not rows:
        return None
    table = Table(title="After against before", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.caption, table.caption_justify = WIN_NOTE, "left"
    for index, heading in enumerate(WIN_HEADINGS):
        table.add_column(heading, justify="left" if index < 2 else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _win_rate_lines(summary: Mapping[str, Any]) -> list[str]:
    rows = win_rate_rows(summary)
    lines = _markdown("After against before, prompt by prompt (a tie is half a win):", WIN_HEADINGS, rows)
    lines += ["", WIN_NOTE] if rows else []
    error = summary.get("judge_error")
    return lines if error is None else [*lines, "", f"The judge gave no win rates: {error}"]


def _test_lines(summary: Mapping[str, Any]) -> list[str]:
    """Figures that changed on some prompt."""
    rates: list[tuple[str, ...]] = []
    others: list[tuple[str, ...]] = []
    for key, test in summary.get("tests", {}).items():
        title, p_value = summary["figures"][key]["title"], number(test["p_value"])
        if "num_differing" in test:
            others.append((title, str(test["num_differing"]), p_value))
        else:
            rates.append((title, str(test["only_before"]), str(test["only_after"]), p_value))
    rates = [row for row in rates if row[1:3] != ("0", "0")]
    one_side = ("rate", "only before", "only after", "p")
    lines = _markdown("Prompts that count on one side only (exact McNemar test):", one_side, rates)
    others = [row for row in others if row[1] != "0"]
    return lines + _markdown("Means and ratios (paired sign flips):", ("figure", "prompts that differ", "p"), others)


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

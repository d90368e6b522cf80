"""A comparison for people: one table (terminal, Markdown) and every figure as CSV. Reads what `compare_runs` returns.

Rows are figures, columns are the base and the methods. `*` marks a difference from the base whose paired 95 % interval
excludes zero.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from negalign_ray.evaluation.comparison import BASE
from negalign_ray.evaluation.table import ARROWS, NO_TEXT, excludes_zero, number

Report = Mapping[str, Any]
# Shown after the harm figures, in this order, where they were measured; all others are in the CSV and JSON files.
SHOWN = (
    "human_benign_logprob_per_token",
    "choices_accuracy_frac",
    "choices_accuracy_frac_per_token",
    "benign_perplexity",
    "refusal_frac_benign_prompts",
    "overrefusal_frac",
    "mean_length_tokens",
    "distinct_2",
    "repetition_frac",
    "kl_per_token",
    "negatives_logprob_per_token",
    "harm_per_seed",
    "roughness",
    "grad_norm_spread",
    "guide_gain",
    "steps_to_target",
    "train_s",
    "wall_s",
    "sampled_tokens",
    "trained_tokens",
    "updates",
)
WHOLE = ("steps_to_target", "train_s", "wall_s", "sampled_tokens", "trained_tokens", "updates")
CSV_COLUMNS = (
    "method", "figure", "behaviour", "mean", "low", "high", "num", "interval",
    "versus_base", "versus_base_low", "versus_base_high", "versus_first", "versus_first_low", "versus_first_high",
)  # fmt: skip


def table_rows(report: Report, *, intervals: bool) -> Iterator[tuple[str, ...]]:
    """(title, better, base, method, method, ...) of every shown figure."""
    harm, rate = report["harm"], report["harm"].removesuffix("score") + "rate"
    columns = [BASE, *report["methods"]]
    for key in (harm, rate):
        yield _prompt_row(report, key, columns, intervals=intervals)
    first = report["methods"][0]
    differences = [report["versus_first"].get(name, {}).get(harm) for name in columns]
    cells = [_difference(item, intervals=intervals) for item in differences]
    yield f"{report['figures'][harm]['title']}, minus {first}", ARROWS["lower"], *cells
    for behaviour, sides in report["by_behaviour"].items():
        cells = [_cell(sides.get(name, {}).get(harm), intervals=intervals) for name in columns]
        yield f"  {behaviour}", ARROWS["lower"], *cells
    for key in (f"{head}_score" for head in report["heads"]):
        if key != harm:  # a second opinion
            yield _prompt_row(report, key, columns, intervals=intervals)
    for key in SHOWN:
        if key in report["figures"]:
            yield _prompt_row(report, key, columns, intervals=intervals)
        elif key in report["run_figures"]:
            yield _run_row(report, key, columns, intervals=intervals)


def _prompt_row(report: Report, key: str, columns: list[str], *, intervals: bool) -> tuple[str, ...]:
    cells = []
    for name in columns:
        values = report["base"] if name == BASE else report["values"].get(name, {})
        difference = report["versus_base"].get(name, {}).get(key)
        cells.append(_cell(values.get(key), intervals=intervals) + ("*" if excludes_zero(difference) else ""))
    figure = report["figures"][key]
    return figure["title"], ARROWS[figure["better"]], *cells


def _run_row(report: Report, key: str, columns: list[str], *, intervals: bool) -> tuple[str, ...]:
    figure = report["run_figures"][key]
    cells = [_run_cell(report["runs"].get(name, {}).get(key), key, intervals=intervals) for name in columns]
    return figure["title"], ARROWS[figure["better"]], *cells


def _cell(interval: Mapping[str, Any] | None, *, intervals: bool) -> str:
    if interval is None or interval["mean"] is None:
        return NO_TEXT
    text = number(interval["mean"])
    if not intervals or interval["low"] is None:
        return text
    return f"{text} [{number(interval['low'])}, {number(interval['high'])}]"


def _difference(interval: Mapping[str, Any] | None, *, intervals: bool) -> str:
    if interval is None or interval["mean"] is None:
        return NO_TEXT
    text = number(interval["mean"], sign=True)
    if intervals and interval["low"] is not None:
        text += f" [{number(interval['low'], sign=True)}, {number(interval['high'], sign=True)}]"
    return text + ("*" if excludes_zero(interval) else "")


def _run_cell(spread: Mapping[str, Any] | None, key: str, *, intervals: bool) -> str:
    """With `intervals` lowest and highest seed; the seeds one by one where some never got there."""
    if spread is None:
        return NO_TEXT

    def text(value: float | None) -> str:
        return NO_TEXT if value is None else f"{value:,.0f}" if key in WHOLE else number(value)

    values = list(spread["by_seed"].values())
    if spread["mean"] is None:
        return NO_TEXT if all(value is None for value in values) else " and ".join(map(text, values))
    if not intervals or spread["low"] == spread["high"]:
        return text(spread["mean"])
    return f"{text(spread['mean'])} ({text(spread['low'])} to {text(spread['high'])})"


def comparison_table(report: Report, *, title: str = "Comparison") -> Table:
    """Without intervals, to fit a terminal: they stand in the Markdown, CSV and JSON files."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, caption_justify="left")
    for index, heading in enumerate(("", "", BASE, *report["methods"])):
        table.add_column(heading, justify="left" if index < 2 else "right", no_wrap=index > 0)
    for row in table_rows(report, intervals=False):
        table.add_row(*map(escape, row))
    table.caption = "\n".join(notes(report))
    return table


def comparison_markdown(report: Report) -> str:
    """The same rows with their intervals."""
    headings = ("figure", "better", BASE, *report["methods"])
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    for row in table_rows(report, intervals=True):
        lines.append("| " + " | ".join(cell.replace("|", "\\|").strip() for cell in row) + " |")
    return "\n".join([*lines, "", *(f"{note}\n" for note in notes(report))])


def notes(report: Report) -> list[str]:
    """What the table rests on, and what is missing in it."""
    seeds = ", ".join(map(str, report["seeds"]))
    lines = [
        f"seeds {seeds} · * differs from {BASE} (paired 95 % bootstrap over prompts) · ↓ lower is better, ↑ higher, "
        "= should stay",
    ]
    if report.get("budget"):
        lines.insert(0, report["budget"])
    counts = {name: count for name, count in report["num_runs"].items() if count < len(report["seeds"])}
    lines += [f"{name}: {count} of {len(report['seeds'])} seeds finished" for name, count in counts.items()]
    lines += report["warnings"]
    return lines + [f"{f['method']}, seed {f['seed']}: {f['error']}: {f['message']}" for f in report["failed"]]


def comparison_csv(report: Report) -> str:
    """Every figure of every method, one a line; `interval` says what low and high are."""
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for name in (BASE, *report["methods"]):
        values = report["base"] if name == BASE else report["values"].get(name, {})
        for key, interval in values.items():
            row = {"method": name, "figure": key, "interval": "prompts", **interval}
            for versus in ("versus_base", "versus_first"):
                difference = report[versus].get(name, {}).get(key)
                if difference is not None:
                    row[versus] = difference["mean"]
                    row |= {f"{versus}_{side}": difference[side] for side in ("low", "high")}
            writer.writerow(row)
        for behaviour, sides in report["by_behaviour"].items():
            for key, interval in sides.get(name, {}).items():
                writer.writerow(
                    {"method": name, "figure": key, "behaviour": behaviour, "interval": "prompts", **interval}
                )
        for key, spread in report["runs"].get(name, {}).items():
            known = {part: spread[part] for part in ("mean", "low", "high")}
            row = {"method": name, "figure": key, "interval": "seeds", "num": len(spread["by_seed"]), **known}
            writer.writerow(row)
    return file.getvalue()

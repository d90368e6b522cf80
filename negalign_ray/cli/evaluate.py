"""`negalign-ray evaluate` on the terminal: progress, the table, win rates, benchmarks, where the files are."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from negalign_ray.actors.evaluate import evaluate
from negalign_ray.cli.progress import Progress
from negalign_ray.config import Config
from negalign_ray.errors import ConfigError
from negalign_ray.evaluation.lm_eval import LmEval
from negalign_ray.evaluation.table import benchmark_rows, summary_table, win_rate_table

FILES = ("samples/evaluation.jsonl", "summary.json", "summary.md", "summary.csv")


def evaluate_and_show(
    config: Config,
    *,
    folder: Path | None,
    lm_eval: Mapping[str, str | None],
    keep: Callable[[dict[str, Any]], None],
    out: Console,
    err: Console,
) -> None:
    """`lm_eval`: the command line's `tasks` (comma-separated, or None) and `options`. What it finds is shown below the
    table, which is shown, and handed to `keep`, before it starts."""
    harness = read_lm_eval(lm_eval["tasks"], lm_eval["options"] or "")

    def show(summary: dict[str, Any]) -> None:
        keep(summary)
        with progress.aside():
            _show(summary, title=config.model.path, out=out)

    with Progress(err, title=f"evaluating {config.model.path}") as progress:
        summary = evaluate(config, out=folder, lm_eval=harness, on_status=progress.update, on_summary=show)
    keep(summary)
    benchmarks = _benchmark_table(summary)
    if benchmarks is not None:
        out.print(benchmarks)


def _show(summary: dict[str, Any], *, title: str, out: Console) -> None:
    out.print(summary_table(summary, title=title))
    win_rates = win_rate_table(summary)
    if win_rates is not None:
        out.print(win_rates)
    for name in FILES:
        out.print(Path(summary["folder"]) / name, markup=False, highlight=False, soft_wrap=True)


def read_lm_eval(tasks: str | None, options: str) -> LmEval | None:
    """ConfigError for options that are no shell words, or without tasks."""
    if tasks is None:
        if options:
            raise ConfigError("--lm-eval-options without --lm-eval; name the tasks, or leave the options out.")
        return None
    try:
        words = tuple(shlex.split(options))
    except ValueError as error:
        raise ConfigError(f"--lm-eval-options {options!r}: {error}; write it as for a shell.") from None
    return LmEval(tuple(task.strip() for task in tasks.split(",")), words)


def _benchmark_table(summary: Mapping[str, Any]) -> Table | None:
    rows = benchmark_rows(summary)
    if not rows:
        return None
    table = Table(title="lm_eval (± standard error)", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(("task", "metric", *summary["lm_eval"])):
        table.add_column(heading, justify="left" if index < 2 else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    return table

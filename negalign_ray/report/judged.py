"""Figures of an evaluation that are no means over prompts: win rates, and benchmarks of lm_eval."""

from dataclasses import dataclass

from negalign_ray.evaluation.table import WIN_HEADINGS, WIN_NOTE, benchmark_rows, win_rate_rows
from negalign_ray.report.read import RunFiles


@dataclass(frozen=True)
class PlainTable:
    """The first two columns are words, the others numbers."""

    title: str
    note: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def judged_tables(run: RunFiles) -> list[PlainTable]:
    """Those that the summary has."""
    tables = []
    if wins := tuple(win_rate_rows(run.summary)):
        note = f"Prompt by prompt; a tie is half a win. Above 0.5 the model after training is preferred. {WIN_NOTE}"
        tables.append(PlainTable("After against before", note, WIN_HEADINGS, wins))
    if benchmarks := tuple(benchmark_rows(run.summary)):
        headings = ("task", "metric", *run.summary["lm_eval"])
        tables.append(PlainTable("Benchmarks of lm_eval", "With their standard errors.", headings, benchmarks))
    return tables

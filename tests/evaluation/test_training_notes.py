"""What a run's metrics say of its method, and where it is read: table, Markdown, comparison, report."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from negalign_ray.config import HeadConfig
from negalign_ray.evaluation.comparison import RunResult, compare_runs
from negalign_ray.evaluation.comparison_table import comparison_csv, comparison_markdown
from negalign_ray.evaluation.summary import summarise
from negalign_ray.evaluation.table import summary_markdown, summary_table
from negalign_ray.evaluation.training_notes import guide_gain, pairs_warning, training_notes
from negalign_ray.report.facts import facts_of
from negalign_ray.report.read import RunFiles
from negalign_ray.report.verdict import verdict_of
from negalign_ray.settings.comparison import Curve
from tests.evaluation.sides import side

JUDGE = HeadConfig(name="judge", kind="python", target="m:f")


def guided(step, gain):
    row = {"step": step, "guide/pairs": 8}
    if gain is None:
        return row
    return row | {"guide/gain_nats": gain, "guide/nll_nats": 2.0, "guide/control_nll_nats": 2.0 + gain}


def ranked(*shares):
    return [{"step": step, "learner/eligible_pairs_frac": share} for step, share in enumerate(shares, start=1)]


GOOD = [guided(1, 0.25), {"step": 2}, guided(3, 0.5), {"step": 4}]
USELESS = [guided(1, 0.25), {"step": 2}, guided(3, -0.125), {"step": 4}]


def test_every_iterations_control_is_kept_and_one_that_fails_is_a_warning():
    assert training_notes(GOOD) == {
        "guide": [
            {"step": 1, "gain_nats": 0.25, "nll_nats": 2.0, "control_nll_nats": 2.25},
            {"step": 3, "gain_nats": 0.5, "nll_nats": 2.0, "control_nll_nats": 2.5},
        ],
        "training_warnings": [],
    }
    assert guide_gain(GOOD) == 0.375
    [warning] = training_notes(USELESS)["training_warnings"]
    assert warning.startswith("LD-Align, iteration 2 of 2: the guide does not beat the zero-vector control")
    [warning] = training_notes([guided(1, None)])["training_warnings"]
    assert "no held-out pairs" in warning
    assert training_notes([{"step": 1}]) == {"guide": [], "training_warnings": []}


def test_clha_without_an_eligible_pair_is_named_as_sft():
    assert "in steps 1 to 3 no two rewards of a prompt differed by more than" in pairs_warning(ranked(0.0, 0.0, 0.0))
    assert "in step 2 " in pairs_warning(ranked(None, 0.0)), "no prompt of step 1 had two candidates"
    assert pairs_warning(ranked(0.0, 0.1, 0.0)) is None
    assert pairs_warning([{"step": 1}]) is None, "no CLHA"


def test_the_tables_of_a_run_end_with_them():
    summary = summarise(side({1: 0.5}), side({1: 0.4}), heads=[JUDGE], resamples=50) | training_notes(USELESS)
    console = Console(file=io.StringIO(), width=400)
    console.print(summary_table(summary))
    for text in (summary_markdown(summary), console.file.getvalue()):
        assert "guide: rebuilds held-out answers +0.250, -0.125 nats per token better than the zero vector does" in text
        assert "warning: LD-Align, iteration 2 of 2: the guide does not beat" in text
    assert "guide" not in summary_markdown(summarise(side({1: 0.5}), None, heads=[JUDGE], resamples=50))


def compared(**rows):
    sides = {"before": side({1: 0.5, 2: 0.5}), "after": side({1: 0.4, 2: 0.4})}
    results = [RunResult(name, 0, **sides, rows=found, steps=4, wall_s=9.0) for name, found in rows.items()]
    names = tuple(rows)
    return compare_runs(results, methods=names, heads=[JUDGE], harm=JUDGE, curve=Curve(), resamples=50)


def test_a_comparison_reads_them_from_the_metrics_of_finished_runs():
    report = json.loads(json.dumps(compared(sft=[{"step": 1}], ld_align=USELESS, clha=ranked(0.0, 0.0))))
    markdown = comparison_markdown(report)
    [row] = [line for line in markdown.splitlines() if line.startswith("| guide: better than the zero vector")]
    assert row.endswith("| ↑ | - | - | 0.062 | - |"), row
    assert "\nld_align, seed 0: LD-Align, iteration 2 of 2: the guide does not beat the zero-vector" in markdown
    assert "\nclha, seed 0: CLHA: in steps 1 to 2 no two rewards" in markdown
    assert "ld_align,guide_gain,,0.0625," in comparison_csv(report)


def test_a_comparison_without_a_guide_has_no_row_for_it():
    report = compared(sft=[{"step": 1}])
    assert "guide" not in comparison_markdown(report)
    assert report["warnings"] == []


@pytest.mark.parametrize("rows", [GOOD, USELESS])
def test_the_report_page_of_a_run_reads_them_from_the_metrics_too(rows):
    run = RunFiles(path=Path("runs/x"), name="x", rows=rows)
    expected = "+0.250, +0.500 nats per token" if rows is GOOD else "+0.250, -0.125 nats per token"
    assert ("Guide, better than the zero vector", expected) in facts_of(run).overview
    leads = {note.lead: note.items[0][0] for note in verdict_of(run).notes}
    assert ("Training" in leads) == (rows is USELESS)

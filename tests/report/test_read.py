"""What is read of a run directory, and what becomes of missing and broken files."""

import json

import pytest

from negalign_ray.errors import DataError
from negalign_ray.report import write_report
from negalign_ray.report.read import read_runs
from tests.report.runs import make_run


def test_a_folder_that_is_no_run_is_refused_with_what_a_run_has(tmp_path):
    with pytest.raises(DataError, match=r"is no run: it has none of config\.yaml, metrics\.jsonl, summary\.json"):
        read_runs([tmp_path])


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    paths = [make_run(tmp_path / "a" / "d2o"), make_run(tmp_path / "b" / "d2o"), make_run(tmp_path / "b" / "dpo")]
    assert [run.name for run in read_runs(paths)] == ["a/d2o", "b/d2o", "b/dpo"]
    assert [run.name for run in read_runs(paths[1:])] == ["d2o", "dpo"]


def test_a_run_named_twice_is_refused(tmp_path):
    path = make_run(tmp_path / "demo")
    with pytest.raises(DataError, match="named twice"):
        read_runs([path, tmp_path / "." / "demo"])


def test_a_broken_file_is_left_out_and_named(tmp_path):
    path = make_run(tmp_path / "demo")
    (path / "summary.json").write_text('{"before": ')
    (path / "card.json").write_text("[]")
    (path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n')
    (run,) = read_runs([path])
    assert (run.summary, run.card, list(run.rows)) == ({}, {}, [])
    assert [problem.split(" ")[0] for problem in run.problems] == ["metrics.jsonl", "card.json", "summary.json"]
    assert run.setting("learners.steps") == 60, "what is sound is kept"


LAYOUTS = {
    "without intervals": lambda summary: summary.pop("intervals"),
    "without changes": lambda summary: summary.pop("difference"),
    "without figures": lambda summary: summary.pop("figures"),
    "without sides": lambda summary: [summary.pop(side) for side in ("before", "after")],
    "changes as numbers": lambda summary: summary.update(difference=dict.fromkeys(summary["difference"], -0.1)),
    "intervals as a list": lambda summary: summary.update(intervals=[1, 2]),
    "behaviours without sides": lambda summary: summary.update(by_behaviour={"weeds": {"change": 0.1}}),
    "guards by name": lambda summary: summary.update(guards=["kl"], stopped_by="kl"),
    "win rates by judge": lambda summary: summary.update(win_rates={"judge": 0.7}),
    "heads as a list": lambda summary: summary.update(heads=["judge"]),
}


@pytest.mark.parametrize("change", LAYOUTS.values(), ids=LAYOUTS)
def test_a_summary_of_another_layout_still_has_a_report(tmp_path, change):
    path = make_run(tmp_path / "demo")
    summary = json.loads((path / "summary.json").read_text())
    change(summary)
    (path / "summary.json").write_text(json.dumps(summary))
    write_report([path], tmp_path / "page.html", max_samples=0)


def test_what_a_summary_of_another_layout_loses_is_named(tmp_path):
    path = make_run(tmp_path / "demo")
    (before,) = read_runs([path])
    summary = json.loads((path / "summary.json").read_text())
    summary["difference"]["judge_rate"] = -0.26
    (path / "summary.json").write_text(json.dumps(summary))
    (run,) = read_runs([path])
    assert before.problems == ()
    assert run.problems == ("summary.json has another layout in difference; what cannot be read is left out.",)
    assert run.summary["difference"].keys() == before.summary["difference"].keys() - {"judge_rate"}
    assert run.summary["intervals"] == before.summary["intervals"]


def test_a_setting_that_the_file_does_not_have_is_the_given_default(tmp_path):
    (run,) = read_runs([make_run(tmp_path / "demo")])
    assert run.setting("sampling.reward_gate.head", "none") == "none"
    assert run.setting("method.alpha") == 0.01

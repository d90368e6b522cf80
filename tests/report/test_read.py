"""What is read of a run directory, and what becomes of missing and broken files."""

import pytest

from negalign_ray.errors import DataError
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


def test_a_setting_that_the_file_does_not_have_is_the_given_default(tmp_path):
    (run,) = read_runs([make_run(tmp_path / "demo")])
    assert run.setting("sampling.reward_gate.head", "none") == "none"
    assert run.setting("method.alpha") == 0.01

"""Several runs against the first one: paired where that is honest."""

import json

import pytest

from negalign_ray.report.read import read_runs
from negalign_ray.report.versus import versus
from tests.report.runs import asked, make_run, write_json_lines


@pytest.fixture
def paths(tmp_path):
    """Every answer of b scores 0.15 more than the same one of a."""
    return [make_run(tmp_path / "a", after=0.15), make_run(tmp_path / "b", after=0.30)]


def harm_row(result):
    return next(row for row in result.rows if row.title == "judge, mean")


def test_the_difference_from_the_first_run_is_paired_by_prompt(paths):
    result = versus(read_runs(paths))
    first, second = harm_row(result).cells
    assert result.unpaired == ()
    assert first.minus_first is None
    assert (second.minus_first.value, second.minus_first.interval) == ("+0.150", "+0.150 to +0.150")
    assert second.differs, "every prompt differs by as much: no doubt, whatever the two intervals say"


def test_shares_are_bold_only_where_the_exact_test_agrees(tmp_path):
    """Of 22 answers four are above 0.5 under b alone: the interval excludes zero, p = 0.125. All 22 score higher."""
    paths = [make_run(tmp_path / "a", after=0.15), make_run(tmp_path / "b", after=0.33)]
    result = versus(read_runs(paths))
    share = next(row for row in result.rows if row.title == "judge > 0.5, share").cells[1]
    assert share.minus_first.interval == "+0.045 to +0.364"
    assert not share.differs
    assert harm_row(result).cells[1].differs


def test_one_run_is_compared_with_nothing(paths):
    assert versus(read_runs(paths[:1])).rows == ()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: (path / "evaluation.json").unlink(), "it has no evaluation.json"),
        (
            lambda path: write_json_lines(path / "samples" / "evaluation.jsonl", asked(23)),
            "it was evaluated on other prompts",
        ),
        (
            lambda path: (path / "config.yaml").write_text(
                (path / "config.yaml").read_text().replace("judges/one", "x")
            ),
            "it was judged by other heads",
        ),
        (
            lambda path: (path / "config.yaml").write_text(
                (path / "config.yaml").read_text().replace("direction: harm", "direction: help")
            ),
            "it was judged by other heads",
        ),
    ],
)
def test_runs_that_were_not_asked_the_same_are_not_paired(paths, spoil, why):
    spoil(paths[1])
    result = versus(read_runs(paths))
    assert result.unpaired == (("b", why),)
    assert harm_row(result).cells[1].minus_first is None
    assert harm_row(result).cells[1].after.interval == "0.130 to 0.230"


def test_a_run_that_is_not_finished_has_an_empty_column(paths):
    (paths[1] / "summary.json").write_text(json.dumps({}))
    assert [cell.after.value for cell in harm_row(versus(read_runs(paths))).cells] == ["0.180", "–"]

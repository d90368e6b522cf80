"""A finished run as a notebook sees it."""

import json
from html.parser import HTMLParser

import pytest

from negalign_ray import open_run
from negalign_ray.config import HeadConfig
from negalign_ray.errors import DataError
from negalign_ray.evaluation.summary import summarise
from negalign_ray.settings import dump_config, load_config
from tests.evaluation.sides import side

JUDGE = HeadConfig(name="judge", kind="sklearn", target="alt-profanity-check")


def write_run(folder, summary):
    (folder / "samples").mkdir(parents=True)
    config = load_config(preset="quickstart", overrides=[f"run.dir={folder.parent}", f"run.name={folder.name}"])
    (folder / "config.yaml").write_text(dump_config(config))
    (folder / "summary.json").write_text(json.dumps(summary))
    row = {"prompt": "Hi", "behaviour": None, "before": "<b>Go</b>", "after": "Hello"}
    (folder / "samples" / "evaluation.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "metrics.jsonl").write_text('{"step": 1, "time_s": 2.0, "learner/loss": 0.5}\n')


@pytest.fixture
def run(tmp_path):
    before = side({1: 0.9, 2: 0.7, 3: 0.8, 4: 0.9, 5: 0.7, 6: 0.8})
    after = side({1: 0.2, 2: 0.1, 3: 0.3, 4: 0.2, 5: 0.1, 6: 0.3}, good_logprob=-6.5)
    write_run(tmp_path / "a <b>" / "mine", summarise(before, after, heads=[JUDGE], steps=20, wall_s=3.0, resamples=200))
    return open_run(tmp_path / "a <b>" / "mine")


def test_figures_are_numbers_with_their_verdict(run):
    harm = run.figures["judge_score"]
    assert (harm.title, harm.better, harm.verdict) == ("judge, mean", "lower", "better")
    assert (harm.before, harm.after, harm.difference) == pytest.approx((0.8, 0.2, -0.6))
    assert harm.low <= harm.difference <= harm.high < 0


def test_everything_else_is_read_from_the_folder(run):
    assert run.model == run.folder / "model"
    assert run.answers()[0]["after"] == "Hello"
    assert run.metrics()[0]["learner/loss"] == 0.5
    assert run.config.method.alpha == 0.02
    assert run.report is None
    (run.folder / "report.html").write_text("<html></html>")
    assert run.report == run.folder / "report.html"


def test_the_plain_text_says_what_became_better_and_worse(run):
    lines = repr(run).splitlines()
    assert lines[0] == f"d2o on smollm2-135m-instruct: 20 steps in {run.folder}"
    assert "  better  ↓ judge, mean: 0.8 -> 0.2" in lines
    assert any(line.startswith("  worse   ↑ log-prob, benign human answers") for line in lines), lines
    assert lines[-1].strip().startswith(f"{len(run.figures)} figures in all")


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.texts = [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_table_of_a_notebook_is_sound_html_without_texts_of_the_model(run):
    (run.folder / "report.html").write_text("")
    page = run._repr_html_()
    cells = Cells()
    cells.feed(page)
    assert cells.open == []
    assert {"judge, mean", "better", "report"} <= set(cells.texts)
    assert "Hello" not in page
    assert "<b>" not in page, "the folder's name is text"


def test_a_run_without_an_evaluation_still_shows_itself(tmp_path):
    write_run(tmp_path / "bare", {"steps": 3, "stopped_by": {"guard": "kl"}})
    run = open_run(tmp_path / "bare")
    assert repr(run) == f"d2o on smollm2-135m-instruct: 3 steps, stopped by kl in {run.folder}"
    assert "<table>" not in run._repr_html_()
    assert run.figures == {}


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"summary.json does not exist; name the folder of a run that has ended"):
        open_run(tmp_path)

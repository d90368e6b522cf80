"""The catalogue of metrics, and the files they are written to."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from negalign_ray.errors import DataError, UnknownMetricError
from negalign_ray.methods import METHODS
from negalign_ray.metrics import (
    METRICS,
    MetricsWriter,
    metric_for,
    read_metrics,
)
from negalign_ray.monitoring.page import catalogue_markdown
from tests.methods.cases import CONFIGS, negative, positive, sample, tensors

DOCS = Path(__file__).resolve().parents[1] / "docs"
PACKAGE = Path(__file__).resolve().parents[1] / "negalign_ray"
ROLES = "learner|behaviour|sampler|scorer|reference|guide|eval|conductor"


def test_docs_page_equals_the_catalogue():
    assert (DOCS / "metrics.md").read_text() == catalogue_markdown(), "run `make docs`"


def test_every_metric_says_what_it_means_and_what_a_bad_value_hints_at():
    for key, metric in METRICS.items():
        role, _, name = key.partition("/")
        assert role in ROLES.split("|"), key
        assert name, key
        assert metric.unit, key
        assert metric.meaning.endswith("."), key
        assert metric.bad.endswith("."), key
        assert "|" not in metric.unit + metric.meaning + metric.bad, f"{key} would break the table"


def test_every_key_that_the_code_writes_is_in_the_catalogue():
    literal = re.compile(rf'"((?:{ROLES})/[a-z0-9_]+)"')
    found = {key for path in PACKAGE.rglob("*.py") for key in literal.findall(path.read_text())}
    assert {"learner/loss", "learner/lr"} <= found
    for key in found:
        metric_for(key)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_metric_of_a_method_is_in_the_catalogue(name):
    output = METHODS[name].loss(tensors([[negative(-3.0), positive(-2.0), sample(-1.0)]]), CONFIGS[name])
    for metric in output.metrics_G:
        metric_for(f"learner/{metric}")


def test_a_key_with_a_head_name_finds_its_pattern():
    assert metric_for("scorer/toxicity_sample") is METRICS["scorer/{head}_sample"]
    assert metric_for("scorer/two_words_negative") is METRICS["scorer/{head}_negative"]


@pytest.mark.parametrize("name", ["rude", "Offending User", "a/b", "{odd}", "two\nlines"])
def test_a_key_with_any_name_of_a_behaviour_finds_its_pattern(name):
    assert metric_for(f"behaviour/{name}/margin_nats") is METRICS["behaviour/{behaviour}/margin_nats"]
    with pytest.raises(UnknownMetricError):
        metric_for(f"behaviour/{name}/margin")
    assert metric_for("scorer/two_words_sample_negative") is METRICS["scorer/{head}_sample_negative"]
    assert metric_for("scorer/toxicity_sample_positive") is METRICS["scorer/{head}_sample_positive"]


@pytest.mark.parametrize("key", ["learner/los", "scorer/{head}_sample", "scorer/Tox_sample", "loss", "scorer/a_b"])
def test_an_unknown_key_is_refused_before_anything_is_written(tmp_path, key):
    with MetricsWriter(tmp_path, tensorboard=False) as writer, pytest.raises(UnknownMetricError, match="catalogue"):
        writer.write(1, {"learner/loss": 0.5, key: 1.0})
    assert read_metrics(tmp_path) == []


def test_a_row_is_complete_on_disk_as_soon_as_it_is_written(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        returned = writer.write(3, {"learner/loss": 0.25, "learner/tokens": 7, "learner/mismatch_nats": None})
        [row] = read_metrics(tmp_path / "metrics.jsonl")
    assert row == returned
    assert row["step"] == 3
    assert row["time_s"] >= 0
    assert (row["learner/loss"], row["learner/tokens"], row["learner/mismatch_nats"]) == (0.25, 7, None)
    assert isinstance(row["learner/tokens"], int)


def test_a_value_added_later_that_is_not_finite_is_null_and_stops_no_training(tmp_path):
    """An evaluation is added to a step while training goes on; guards.non_finite looks at the count."""
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"learner/loss": 1.0})
        writer.add(1, {"eval/version": 1, "eval/answer_s": float("nan")})
        row = writer.write(2, {"learner/loss": 0.5})
    assert "conductor/nonfinite_values" not in row
    assert read_metrics(tmp_path)[0]["eval/answer_s"] is None


def test_non_finite_values_become_null_and_are_counted(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"learner/loss": 1.0})
        writer.write(2, {"learner/loss": float("nan"), "learner/grad_norm": float("inf")})
        writer.write(3, {"learner/loss": float("-inf")})
        assert writer.num_nonfinite == 3
    first, second, third = read_metrics(tmp_path)
    assert "conductor/nonfinite_values" not in first
    assert (second["learner/loss"], second["learner/grad_norm"], second["conductor/nonfinite_values"]) == (
        None,
        None,
        2,
    )
    assert third["conductor/nonfinite_values"] == 3
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_steps_repeated_after_a_restart_are_merged_and_the_later_value_wins(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(1, {"learner/loss": 0.7})
        writer.write(2, {"learner/loss": 0.6, "learner/lr": 1.0})
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write(2, {"learner/loss": 0.5})
        writer.write(3, {"learner/loss": 0.4})
    rows = read_metrics(tmp_path)
    assert [(row["step"], row["learner/loss"]) for row in rows] == [(1, 0.7), (2, 0.5), (3, 0.4)]
    assert rows[1]["learner/lr"] == 1.0


def test_a_line_torn_by_a_kill_is_left_out_by_readers_and_cut_off_by_the_next_writer(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "time_s": 100.0}\n{"step": 2, "ti')
    assert [row["step"] for row in read_metrics(path)] == [1]
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        row = writer.write(2, {"learner/loss": 0.5})
    assert row["time_s"] >= 100.0, "the clock of the run goes on"
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_broken_line_is_named_by_its_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "time_s": 0.0}\nnonsense\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2 "):
        read_metrics(path)
    with pytest.raises(DataError, match="does not exist"):
        read_metrics(tmp_path / "elsewhere.jsonl")


def test_tensorboard_reads_the_events_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsWriter(tmp_path) as writer:
        writer.write(1, {"learner/loss": 0.75, "learner/grad_norm": float("nan")})
        writer.write(2, {"learner/loss": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(scalar.step, scalar.value) for scalar in events.Scalars("learner/loss")] == [(1, 0.75), (2, 0.5)]
    assert "learner/grad_norm" not in events.Tags()["scalars"]


def test_writing_metrics_imports_no_torch(tmp_path):
    code = (
        "import sys, pathlib; from negalign_ray.metrics import MetricsWriter\n"
        "with MetricsWriter(pathlib.Path(sys.argv[1])) as writer: writer.write(1, {'learner/loss': 1.0})\n"
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


def test_values_added_later_join_the_row_of_their_step_and_keep_its_time(tmp_path):
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        first = writer.write(1, {"learner/loss": 0.5})
        writer.write(2, {"learner/loss": 0.4})
        writer.add(1, {"eval/judge_score": 0.3})
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0] == {**first, "eval/judge_score": 0.3}
    MetricsWriter(tmp_path, tensorboard=False).close()  # opens again


def test_a_judge_of_the_evaluation_finds_its_pattern():
    assert metric_for("eval/judge_score") is METRICS["eval/{head}_score"]
    assert metric_for("eval/judge_rate_benign_prompts") is METRICS["eval/{head}_rate_benign_prompts"]
    assert metric_for("eval/overrefusal_frac") is METRICS["eval/overrefusal_frac"]

"""Reading what a run has written while it writes on: whole lines only, every step once, and files made anew."""

import json
from functools import partial
from pathlib import Path

import pytest

from negalign_ray.actors.logs import read_record
from negalign_ray.errors import DataError
from negalign_ray.live.record import GrowingLines, RunRecord
from negalign_ray.settings import dump_config, load_config


def add(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def row(step: int, **values: float) -> str:
    return (
        json.dumps({"step": step, "time_s": 10.0 * step, **{f"learner/{key}": v for key, v in values.items()}}) + "\n"
    )


@pytest.fixture
def run_dir(tmp_path):
    config = load_config(preset="quickstart", overrides=["guards.kl.limit=0.5", "guards.kl.window=1"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    return tmp_path


@pytest.fixture
def record(run_dir) -> RunRecord:
    return RunRecord(partial(read_record, run_dir))


def test_only_whole_lines_come_and_each_once(tmp_path):
    lines = GrowingLines(lambda name, offset: (tmp_path / name).read_bytes()[offset:][:4], "file")  # in small pieces
    add(tmp_path / "file", "one\ntw")
    assert lines.new() == [b"one"]
    assert lines.new() == []
    add(tmp_path / "file", "o\nthree\n")
    assert lines.new() == [b"two", b"three"]
    assert lines.restarts == 0


@pytest.mark.parametrize("text", ["", "1\n", "other text that is longer than before\n"])
def test_a_file_that_was_made_anew_is_read_from_its_beginning(tmp_path, text):
    (tmp_path / "file").write_text("one\ntwo\n")
    lines = GrowingLines(lambda name, offset: (tmp_path / name).read_bytes()[offset:], "file")
    assert lines.new() == [b"one", b"two"]
    (tmp_path / "file").write_text(text)
    assert lines.new() == text.encode().splitlines()
    assert lines.restarts == 1


def test_rows_events_and_guards_follow_the_files(run_dir, record):
    record.refresh()
    assert (record.rows, record.events) == ([], [])
    add(run_dir / "metrics.jsonl", row(1, kl_nats=0.25) + '{"step": 2, "ti')
    add(run_dir / "events.jsonl", '{"kind": "scale", "reason": "samplers: 1 to 2", "time_s": 3.5}\ntorn\n')
    record.refresh()
    assert [each["step"] for each in record.rows] == [1]
    assert [(event.kind, event.time_s) for event in record.events] == [("scale", 3.5)]
    [kl] = [reading for reading in record.guards.readings() if reading.guard == "kl"]
    assert (kl.value, kl.limit, kl.fired) == (0.25, 0.5, False)
    add(run_dir / "metrics.jsonl", 'me_s": 20.0, "learner/kl_nats": -0.75}\n')
    record.refresh()
    assert [each["step"] for each in record.rows] == [1, 2]
    [kl] = [reading for reading in record.guards.readings() if reading.guard == "kl"]
    assert (kl.value, kl.fired) == (0.75, True)


def test_lines_of_one_step_are_joined_and_the_later_value_wins(run_dir, record):
    add(run_dir / "metrics.jsonl", row(1, loss=0.7) + row(2, loss=0.6) + row(3, loss=0.5))
    record.refresh()
    add(run_dir / "metrics.jsonl", row(2, loss=0.4))
    record.refresh()
    assert [(each["step"], each["learner/loss"]) for each in record.rows] == [(1, 0.7), (2, 0.4), (3, 0.5)]


def test_an_evaluation_belongs_to_its_step_and_has_no_time_of_its_own(run_dir, record):
    add(run_dir / "metrics.jsonl", '{"step": 0, "eval/judge_score": 0.75}\n' + row(1) + row(2) + row(3))
    add(run_dir / "metrics.jsonl", '{"step": 2, "eval/judge_score": 0.5}\n')
    record.refresh()
    assert [each.get("eval/judge_score") for each in record.rows] == [0.75, None, 0.5, None]
    assert [each["step"] for each in record.steps] == [1, 2, 3]
    facts = record.facts(name="mine", phase="training", is_over=False, roles=(), queue=None)
    assert (facts.step, facts.time_s) == (3, 30.0)
    assert facts.pace.groups_per_s == pytest.approx(record.config.learners.groups_per_step / 10.0)
    [curve] = facts.curves
    assert (curve.label, curve.values) == ("eval judge", (0.75, 0.5))


def test_metrics_that_were_cut_back_are_read_anew(run_dir, record):
    add(run_dir / "metrics.jsonl", row(1, kl_nats=0.0) + row(2, kl_nats=0.9))
    record.refresh()
    (run_dir / "metrics.jsonl").write_text(row(1, kl_nats=0.0))
    record.refresh()
    assert [each["step"] for each in record.rows] == [1]
    assert [reading.fired for reading in record.guards.readings() if reading.guard == "kl"] == [False]


def test_a_folder_without_settings_is_no_run(tmp_path):
    with pytest.raises(DataError, match=r"there is no config\.yaml"):
        RunRecord(partial(read_record, tmp_path))

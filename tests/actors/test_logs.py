"""Logs of a run: the last lines, what comes after them, and nothing but logs."""

import pytest

from negalign_ray.actors.logs import LogFolder, LogReader, read_record
from negalign_ray.errors import ConfigError


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "logs").mkdir()
    for name in ("sampler-0", "sampler-1", "learner-0"):
        (tmp_path / "logs" / f"{name}.log").write_text("".join(f"{name} line {number}\n" for number in range(3)))
    (tmp_path / "logs" / "sampler-0.json").write_text("{}")
    (tmp_path / "config.yaml").write_text("secret")
    return tmp_path


def reader(run_dir, role=None) -> LogReader:
    return LogReader(LogFolder(run_dir), run="d2o", role=role)


def test_the_last_lines_of_every_log_of_a_role(run_dir):
    assert list(reader(run_dir, "sampler").tail(1)) == [
        ("sampler-0", "sampler-0 line 2"),
        ("sampler-1", "sampler-1 line 2"),
    ]
    assert len(list(reader(run_dir).tail(2))) == 6
    assert [text for _, text in reader(run_dir, "learner-0").tail(0)] == [f"learner-0 line {n}" for n in range(3)]


def test_only_the_end_of_a_long_log_is_read_and_begins_with_a_whole_line(run_dir):
    short = LogReader(LogFolder(run_dir), run="d2o", role="learner", tail_bytes=25)  # a line has 17 bytes
    assert [text for _, text in short.tail(5)] == ["learner-0 line 2"]


def test_what_is_written_later_follows_line_by_line_until_the_run_ends(run_dir):
    file = run_dir / "logs" / "learner-0.log"
    steps = iter(["learner-0 li", "ne 3\nlearner-0 line 4\n", None])
    going = reader(run_dir, "learner")
    assert len(list(going.tail(0))) == 3

    def write(_: float) -> None:
        text = next(steps)
        if text is not None:
            with file.open("a") as log:
                log.write(text)

    alive = iter([True, True, True, False])
    new = [text for _, text in going.follow(lambda: next(alive), pause=write)]
    assert new == ["learner-0 line 3", "learner-0 line 4"]


def test_a_role_that_joins_later_is_followed_too(run_dir):
    going = reader(run_dir, "sampler")
    list(going.tail(1))
    (run_dir / "logs" / "sampler-2.log").write_text("hello\n")
    assert list(going.follow(lambda: False)) == [("sampler-2", "hello")]


def test_a_role_that_is_not_there_is_told_with_those_that_are(run_dir):
    with pytest.raises(ConfigError, match=r"run d2o has no log of 'samplers'; it has: learner-0, sampler-0, sampler-1"):
        list(reader(run_dir, "samplers").tail(1))


@pytest.mark.parametrize("name", ["../config.yaml", "/etc/passwd", "../logs/sampler-0", "sampler-0.json", ""])
def test_nothing_but_logs_is_ever_read(run_dir, name):
    with pytest.raises(ConfigError, match="has no log"):
        LogFolder(run_dir).read(name, 0)


def test_a_long_log_comes_in_pieces(run_dir):
    folder = LogFolder(run_dir, chunk_bytes=10)
    assert len(folder.read("learner-0", 0)) == 10
    lines = LogReader(folder, run="d2o", role="learner").tail(0)
    assert [text for _, text in lines] == [f"learner-0 line {n}" for n in range(3)]


def test_records_of_a_run_are_read_from_any_place_and_are_empty_until_they_are_there(run_dir):
    (run_dir / "metrics.jsonl").write_text("0123456789")
    assert read_record(run_dir, "metrics.jsonl", 4) == b"456789"
    assert read_record(run_dir, "metrics.jsonl", 4, chunk_bytes=2) == b"45"
    assert read_record(run_dir, "metrics.jsonl", 10) == b""
    assert read_record(run_dir, "events.jsonl", 0) == b""


@pytest.mark.parametrize("name", ["summary.json", "../metrics.jsonl", "logs/sampler-0.log", "model/config.json"])
def test_nothing_but_records_is_read_as_one(run_dir, name):
    with pytest.raises(ConfigError, match=r"no record of a run; they are config\.yaml, metrics\.jsonl, events\.jsonl"):
        read_record(run_dir, name, 0)

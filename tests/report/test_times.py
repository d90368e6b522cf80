"""Where the time went, by hand: 60 steps of 4 s in a run of 300 s."""

from dataclasses import replace

import pytest

from negalign_ray.report.read import read_runs
from negalign_ray.report.times import bars, duration
from tests.report.runs import make_run


@pytest.fixture
def bar_of(tmp_path):
    (run,) = read_runs([make_run(tmp_path / "demo")])
    return {bar.label: {part.label: (part.seconds, part.percent) for part in bar.parts} for bar in bars(run)}


def test_the_run_divides_into_steps_and_the_rest(bar_of):
    assert bar_of["Whole run"] == {"training steps": (240.0, 80.0), "start, evaluation, export": (60.0, 20.0)}


def test_a_learners_time_is_divided_without_a_rest(bar_of):
    assert bar_of["Learners"] == {
        "computing": (60.0, 25.0),
        "gathering weights": (30.0, 12.5),
        "waiting for groups": (120.0, 50.0),
        "all else": (30.0, 12.5),
    }


def test_other_roles_are_busy_or_idle_and_a_role_that_did_nothing_has_no_bar(bar_of):
    assert bar_of["Samplers"] == {"busy": (60.0, 25.0), "idle": (180.0, 75.0)}
    assert bar_of["References"]["busy"] == (pytest.approx(24.0), 10.0)
    assert "Scorers" not in bar_of


def test_busy_seconds_are_held_against_the_time_of_all_actors(tmp_path):
    path = make_run(tmp_path / "demo")
    text = (path / "config.yaml").read_text().replace("samplers:\n", "samplers:\n  num: 2\n", 1)
    (path / "config.yaml").write_text(text.replace("  num: 1\n  engine: vllm", "  engine: vllm"))
    (run,) = read_runs([path])
    assert run.setting("samplers.num") == 2
    (samplers,) = [bar for bar in bars(run) if bar.label == "Samplers"]
    assert samplers.note == "2 actors at the start", "there are events of scaling"
    assert [part.percent for part in samplers.parts] == [12.5, 87.5]
    grown = [row | {"sampler/num": 4 if row["step"] > 30 else 2} for row in run.rows]
    (samplers,) = [bar for bar in bars(replace(run, rows=grown)) if bar.label == "Samplers"]
    assert [part.percent for part in samplers.parts] == [8.33, 91.67], "60 s of 30 steps of 2 and 30 of 4 samplers"


def test_scorers_that_come_and_go_are_counted_step_by_step_and_references_by_the_busiest(tmp_path):
    """60 steps of 4 s. One scorer, then 3: 480 actor seconds, 120 of them busy. 24 s of the busiest reference."""
    (run,) = read_runs([make_run(tmp_path / "demo")])
    rows = [
        row | {"scorer/busy_s": 2.0, "scorer/num": 3 if row["step"] > 30 else 1, "reference/num": 5} for row in run.rows
    ]
    found = {bar.label: {part.label: part.percent for part in bar.parts} for bar in bars(replace(run, rows=rows))}
    assert found["Scorers"] == {"busy": 25.0, "idle": 75.0}
    assert found["References"] == {"busy": 10.0, "idle": 90.0}


def test_a_run_without_steps_has_no_bars(tmp_path):
    path = make_run(tmp_path / "demo")
    (path / "metrics.jsonl").write_text("")
    (run,) = read_runs([path])
    assert bars(run) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0.2 s"), (42, "42 s"), (59.7, "1 min"), (200, "3 min 20 s"), (3600, "1 h 0 min"), (7320, "2 h 2 min")],
)
def test_durations_are_for_reading(seconds, text):
    assert duration(seconds) == text

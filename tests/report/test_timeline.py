"""Events on a line of time, and guards."""

from negalign_ray.events import Event, EventKind
from negalign_ray.report.read import RunFiles, read_runs
from negalign_ray.report.timeline import MAX_EVENTS, guard_rows, timeline_of
from tests.report.runs import make_run


def test_events_lie_where_the_time_puts_them_and_faults_come_first(tmp_path):
    (run,) = read_runs([make_run(tmp_path / "demo")])  # 240 s long
    timeline = timeline_of(run)
    assert [(label, [one.at for one in happenings]) for label, _, happenings in timeline.lanes] == [
        ("faults", [37.5]),
        ("replacements", [40.0]),
        ("scaling", [10.0]),
        ("guards", [58.33]),
        ("checkpoints", [33.33, 66.67]),
    ]
    fault = timeline.lanes[0][2][0]
    assert (fault.when, fault.step, fault.where) == ("1 min 30 s", "22", "sampler 1, version 22")
    assert timeline.ticks[-1] == (100.0, "4 min")
    assert timeline.num_left_out == 0


def test_a_run_without_the_file_has_no_time_line(tmp_path):
    path = make_run(tmp_path / "demo")
    (path / "events.jsonl").unlink()
    (run,) = read_runs([path])
    assert timeline_of(run) is None


def test_of_too_many_events_the_rare_kinds_stay():
    events = [Event(EventKind.CHECKPOINT, f"step {step}", time_s=float(step)) for step in range(MAX_EVENTS + 50)]
    events.append(Event(EventKind.FAULT, "died", time_s=3.0))
    timeline = timeline_of(RunFiles(None, "demo", events=events))
    assert timeline.num_left_out == 51
    assert len(timeline.happenings) == MAX_EVENTS
    assert [label for label, *_ in timeline.lanes] == ["faults", "checkpoints"]


def test_a_guard_names_the_steps_that_it_looked_at(tmp_path):
    (run,) = read_runs([make_run(tmp_path / "demo")])
    (row,) = guard_rows(run)
    assert (row.guard, row.steps, row.value, row.limit, row.action) == (
        "own_answers",
        "31 to 35",
        "0.620",
        "0.500",
        "warn",
    )
    assert guard_rows(RunFiles(None, "demo")) == []

"""The file of what happened to a run, as several processes write it and a report reads it."""

import json

from negalign_ray.events import FILE_NAME, Event, EventKind, EventLog, read_events

START_S = 1_000_000_000.0  # 2001-09-09T01:46:40 UTC
FAULT = Event(EventKind.FAULT, "killed", role="sampler", rank=2, step=7, weight_version=6)


class Clock:
    now_s = START_S

    def __call__(self) -> float:
        return self.now_s


def test_an_event_gets_the_seconds_of_the_run_and_the_time_of_day(tmp_path):
    clock = Clock()
    log = EventLog(tmp_path, now_s=clock)
    clock.now_s += 12.3456
    log.record(FAULT)
    assert json.loads((tmp_path / FILE_NAME).read_text()) == {
        "kind": "fault", "reason": "killed", "role": "sampler", "rank": 2, "step": 7, "weight_version": 6,
        "time_s": 12.346, "time": "2001-09-09T01:46:52.345+00:00",
    }  # fmt: skip
    (event,) = read_events(tmp_path)
    assert event.kind is EventKind.FAULT
    assert (event.role, event.time_s) == ("sampler", 12.346)


def test_a_resumed_run_goes_on_counting_where_it_was_interrupted(tmp_path):
    EventLog(tmp_path, now_s=Clock()).record(FAULT)
    EventLog(tmp_path, earlier_s=40.0, now_s=Clock()).record(Event(EventKind.RESUME, "step 3"))
    assert [(event.kind, event.time_s) for event in read_events(tmp_path)] == [("fault", 0.0), ("resume", 40.0)]


def test_a_torn_line_costs_itself_alone(tmp_path):
    EventLog(tmp_path).record(FAULT)
    with (tmp_path / FILE_NAME).open("a") as file:
        file.write('{"kind": "sca')
    assert [event.kind for event in read_events(tmp_path)] == ["fault"]
    EventLog(tmp_path).record(FAULT)
    assert [event.kind for event in read_events(tmp_path)] == ["fault", "fault"]


def test_lines_of_several_writers_stand_one_after_the_other(tmp_path):
    writers = [EventLog(tmp_path) for _ in range(3)]
    for number in range(9):
        writers[number % 3].record(Event(EventKind.SCALE, f"{number}: ünicode", role="scorer"))
    assert [event.reason[0] for event in read_events(tmp_path)] == list("012345678")


def test_what_cannot_be_written_is_logged_and_does_not_end_the_run(tmp_path, caplog):
    log = EventLog(tmp_path)
    log.path.mkdir()
    log.record(FAULT)
    assert "could not be written" in caplog.text


def test_a_run_without_events_has_none(tmp_path):
    assert read_events(tmp_path) == []

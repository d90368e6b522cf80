"""What `status` shows: figures worked out by hand, and the same run after a journey as JSON."""

import io
import json

import pytest
from rich.console import Console

from negalign_ray.actors.overview import (
    Overview,
    Pace,
    Queues,
    RoleState,
    error_lines,
    make_overview,
    pace_of,
    role_states,
)
from negalign_ray.cli.overview import overview_table
from negalign_ray.events import Event, EventKind
from negalign_ray.loops.watchdog import Activity
from negalign_ray.settings import load_config

OVERVIEW = Overview(
    run="d2o",
    run_dir="/shared/runs/d2o",
    phase="training",
    step=12,
    num_steps=300,
    sampler_version=11,
    roles=(
        RoleState("learner", 0, "trains on step 12", 4.0, None),
        RoleState("sampler", 0, "sample call", 75.2, 11),
        RoleState("sampler", 1, "starting", None, None),
    ),
    queues=Queues(under_way=20, ready=12, capacity=256),
    pace=Pace(groups_per_s=1.5, sampled_tokens_per_s=640.0, trained_tokens_per_s=900.0, eta_s=3700.0),
    errors=("2026-11-22T21:04:05.120+00:00 fault sampler[1]: the actor died",),
)


def test_an_overview_survives_a_journey_as_json():
    assert Overview.from_json(json.loads(json.dumps(OVERVIEW.to_json()))) == OVERVIEW


def test_rates_are_means_over_the_steps_between_the_first_and_the_last_row():
    rows = [
        {"step": 1, "time_s": 10.0, "learner/tokens": 999, "sampler/tokens_per_s": 999.0, "sampler/busy_s": 9.0},
        {"step": 2, "time_s": 14.0, "learner/tokens": 300, "sampler/tokens_per_s": 50.0, "sampler/busy_s": 2.0},
        {"step": 3, "time_s": 20.0, "learner/tokens": 500, "sampler/tokens_per_s": 50.0, "sampler/busy_s": 4.0},
    ]
    # 10 s hold 2 steps of 8 groups, 50 * 2 + 50 * 4 sampled tokens, 800 trained ones; 7 steps at 5 s are left.
    assert pace_of(rows, groups_per_step=8, steps_left=7) == Pace(1.6, 30.0, 80.0, 35.0)
    assert pace_of(rows[:1], groups_per_step=8, steps_left=7) == Pace()


def test_only_the_newest_steps_count():
    rows = [{"step": n, "time_s": 100.0 * n, "learner/tokens": 1} for n in range(20)]
    rows += [{"step": 20 + n, "time_s": 2000.0 + n, "learner/tokens": 1} for n in range(11)]
    pace = pace_of(rows, groups_per_step=3, steps_left=2)
    assert (pace.groups_per_s, pace.eta_s, pace.sampled_tokens_per_s) == (3.0, 2.0, None)


def test_a_role_that_nobody_has_called_yet_is_shown_too():
    config = load_config(preset="quickstart", overrides=["samplers.num=2"])
    activities = [Activity("sampler", 0, "sample call", 3.14, works=True, weight_version=4)]
    states = {(each.role, each.rank): each for each in role_states(config, activities, is_ready=True)}
    assert states["sampler", 0] == RoleState("sampler", 0, "sample call", 3.1, 4)
    assert states["sampler", 1] == RoleState("sampler", 1, "idle", None, None)
    assert states["learner", 0].doing == "idle"
    assert role_states(config, [], is_ready=False)[0].doing == "starting"


def test_a_run_that_is_asked_to_stop_is_stopping_as_long_as_it_trains():
    def phase(current: str) -> str:
        config = load_config(preset="quickstart")
        facts = {"step": 0, "rollout": None, "activities": (), "rows": (), "events": ()}
        return make_overview(config, phase=current, is_stopping=True, **facts).phase

    assert phase("training") == "stopping"
    assert phase("evaluating after") == "evaluating after"


def test_the_last_errors_are_lines_without_line_breaks():
    events = [Event(EventKind.CHECKPOINT, "step 5 sealed"), Event(EventKind.STALL, "nothing\n  moves", time="21:00")]
    events += [Event(EventKind.FAULT, f"fault {n}", role="sampler", rank=1, time="22:00") for n in range(4)]
    assert error_lines(events) == (
        "21:00 stall: nothing moves",
        *(f"22:00 fault sampler[1]: fault {n}" for n in range(4)),
    )
    assert len(error_lines(events * 3)) == 5


@pytest.mark.parametrize(
    "shown",
    [
        "d2o  (/shared/runs/d2o)",
        "training, step 12/300",
        "learners 12, samplers 11",
        "20 under way, 12 ready, room for 256",
        "1.50 groups/s, 640 sampled tokens/s, 900 trained tokens/s",
        "1:01:40",
        "sampler[0]",
        "v11",
        "1:15",
        "fault sampler[1]: the actor died",
    ],
)
def test_the_table_shows(shown):
    console = Console(width=120, file=io.StringIO())
    console.print(overview_table(OVERVIEW))
    assert shown in console.file.getvalue()

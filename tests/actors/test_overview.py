"""What `status` shows: figures worked out by hand, and the same run after a journey as JSON."""

import io
import json

import pytest
from rich.console import Console

from negalign_ray.actors.overview import (
    Overview,
    Queues,
    RoleState,
    error_lines,
    make_overview,
    role_states,
)
from negalign_ray.cli.overview import overview_table
from negalign_ray.events import Event, EventKind
from negalign_ray.loops.pace import Pace
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


def test_a_role_that_nobody_has_called_yet_is_shown_too():
    config = load_config(preset="quickstart", overrides=["samplers.num=2"])
    activities = [Activity("sampler", 0, "sample call", 3.14, works=True, weight_version=4, busy_s=2.72)]
    states = {(each.role, each.rank): each for each in role_states(config, activities, is_ready=True)}
    assert states["sampler", 0] == RoleState("sampler", 0, "sample call", 3.1, 4, works=True, busy_s=2.7)
    assert states["sampler", 1] == RoleState("sampler", 1, "idle", None, None)
    assert states["learner", 0].doing == "idle"
    assert role_states(config, [], is_ready=False)[0].doing == "starting"
    left = role_states(config, [], is_ready=True, serving={"sampler": (1,)})
    assert [each.rank for each in left if each.role == "sampler"] == [1], "one that has left is not idle"


def test_a_run_that_is_asked_to_stop_is_stopping_as_long_as_it_trains():
    def phase(current: str) -> str:
        config = load_config(preset="quickstart")
        facts = {"step": 0, "rollout": None, "serving": {}, "activities": (), "rows": (), "events": ()}
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

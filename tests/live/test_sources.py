"""The same run seen through its directory and through its conductor."""

import json
import os
import socket
from dataclasses import replace

import pytest

from negalign_ray.actors.locate import Meeting, write_meeting
from negalign_ray.actors.logs import read_record
from negalign_ray.actors.overview import Overview, Queues, RoleState
from negalign_ray.errors import ClusterError, ConfigError, RunEndedError
from negalign_ray.events import Event, EventKind, EventLog
from negalign_ray.live.conductor import ConductorSource
from negalign_ray.live.facts import QueueFacts, RoleFacts
from negalign_ray.live.folder import FolderSource, num_actors
from negalign_ray.live.sources import UntilItEnds, open_source
from negalign_ray.loops.pace import Pace
from negalign_ray.settings import load_config


class Clock:
    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def go_on(run_dir, *, pid: int | None = None) -> None:
    write_meeting(run_dir, Meeting("127.0.0.1:1", pid or os.getpid(), socket.gethostname(), "2026"))


def test_a_run_directory_tells_of_a_run_that_goes_on(run_dir):
    go_on(run_dir)
    facts = FolderSource(run_dir, now_s=Clock()).look()
    assert (facts.name, facts.method, facts.phase, facts.is_over) == ("mine", "d2o", "running", False)
    assert (facts.step, facts.num_steps, facts.time_s) == (3, 10, 35.0)  # 30 s at the last step, 5 s ago
    assert facts.queue == QueueFacts(under_way=3, ready=4, capacity=16)
    assert facts.pace == Pace(groups_per_s=0.4, sampled_tokens_per_s=30.0, trained_tokens_per_s=40.0, eta_s=70.0)
    # Two samplers work 15 of 20 actor seconds a step; the learner waits 8 of 10.
    assert facts.roles == (
        RoleFacts("sampler", None, "last line of its log", 10.0, weight_version=2, idle_frac=0.25, num=2),
        RoleFacts("learner", None, "last line of its log", 10.0, weight_version=3, idle_frac=0.8, num=1),
    )


def test_actors_are_as_many_as_the_newest_step_says_else_as_the_settings_do(run_dir):
    config = load_config(file=run_dir / "config.yaml")
    config = config.model_copy(update={"scorers": config.scorers.model_copy(update={"num": 3})})
    assert num_actors(config, [])["scorer"] == 3
    counted = {"step": 2, "sampler/num": 4, "scorer/num": 5, "reference/num": 6}
    assert num_actors(config, [{"step": 1, "scorer/num": 9}, counted]) == {
        "sampler": 4, "scorer": 5, "reference": 6, "guide": 1, "learner": config.learners.num,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("summary", "phase"),
    [
        ({"steps": 10}, "finished"),
        ({"steps": 3, "stopped_by": None}, "stopped early"),
        ({"steps": 3, "stopped_by": {"guard": "kl"}}, "ended by guard kl"),
        (None, "cut short"),
    ],
)
def test_how_a_run_ended(run_dir, summary, phase):
    if summary is not None:
        (run_dir / "summary.json").write_text(json.dumps(summary))
    facts = FolderSource(run_dir, now_s=Clock()).look()
    assert (facts.phase, facts.is_over, facts.time_s, facts.pace.eta_s) == (phase, True, 30.0, 0.0)
    assert {role.doing for role in facts.roles} == {""}


def test_a_run_that_ended_with_an_error_says_so(run_dir):
    EventLog(run_dir).record(Event(EventKind.FAILED, "StallError: nothing has moved"))
    facts = FolderSource(run_dir).look()
    assert facts.phase == "failed"
    assert [event.reason for event in facts.events] == ["StallError: nothing has moved"]


def test_a_run_before_its_first_step_has_neither_curves_nor_rates(run_dir):
    (run_dir / "metrics.jsonl").unlink()
    facts = FolderSource(run_dir).look()
    assert (facts.step, facts.time_s, facts.queue, facts.curves, facts.pace) == (0, None, None, (), Pace())


class FakeRun:
    """What a RunHandle does, over a run directory that only it can see."""

    name = "mine"

    def __init__(self, run_dir) -> None:
        self._run_dir = run_dir
        self.overview: Overview | None = Overview(
            run="mine",
            run_dir="/elsewhere/mine",
            phase="training",
            step=3,
            num_steps=10,
            sampler_version=2,
            roles=(
                RoleState("learner", 0, "waits for the batch of step 3", 4.0, None, works=False, busy_s=6.0),
                RoleState("sampler", 0, "sample call", 2.0, 3, works=True, busy_s=20.0),
                RoleState("sampler", 1, "starting", None, None),
            ),
            queues=Queues(under_way=5, ready=1, capacity=16),
            pace=Pace(),
            errors=(),
        )

    def status(self):
        if self.overview is None:
            raise RunEndedError("it has ended")
        return self.overview

    def call(self, method, *arguments):
        assert method == "read_record"
        return read_record(self._run_dir, *arguments)

    def has_worked(self, *busy_s: float) -> None:
        roles = tuple(replace(role, busy_s=s) for role, s in zip(self.overview.roles, busy_s, strict=True))
        self.overview = replace(self.overview, roles=roles)


def test_a_conductor_tells_what_every_actor_does(run_dir):
    clock, run = Clock(), FakeRun(run_dir)
    source = ConductorSource(run, now_s=clock)
    facts = source.look()
    assert (facts.name, facts.phase, facts.is_over, facts.step, facts.time_s) == ("mine", "training", False, 3, 30.0)
    assert facts.queue == QueueFacts(under_way=5, ready=1, capacity=16)
    assert facts.pace.eta_s == 70.0
    # In the order in which groups pass them; idle shares of a first look are those of the roles' last steps.
    assert facts.roles == (
        RoleFacts("sampler", 0, "sample call", 2.0, weight_version=3, idle_frac=0.25, works=True),
        RoleFacts("sampler", 1, "starting", None, weight_version=None, idle_frac=0.25),
        RoleFacts("learner", 0, "waits for the batch of step 3", 4.0, weight_version=3, idle_frac=0.8),
    )
    clock.now_s += 4
    assert source.look().time_s == 34.0


def test_idle_shares_are_each_actor_s_own_once_it_was_watched_and_of_the_last_minute(run_dir):
    clock, run = Clock(), FakeRun(run_dir)
    source = ConductorSource(run, now_s=clock)

    def idle() -> list[float]:
        return [role.idle_frac for role in source.look().roles]

    assert idle() == pytest.approx([0.25, 0.25, 0.8])
    clock.now_s += 10
    run.has_worked(7.0, 29.0, 0.0)  # learner 1 of 10 s, samplers 9 and 0
    assert idle() == pytest.approx([0.1, 1.0, 0.9])
    clock.now_s += 60
    run.has_worked(67.0, 29.0, 30.0)  # in these 60 s: all of them, none, half
    assert idle() == pytest.approx([1.0, 0.5, 0.0])


def test_when_the_conductor_is_gone_the_run_directory_goes_on_telling(run_dir):
    run = FakeRun(run_dir)
    source = UntilItEnds(ConductorSource(run), run_dir)
    assert source.look().phase == "training"
    run.overview = None
    (run_dir / "summary.json").write_text('{"steps": 10}')
    assert [source.look().phase for _ in range(2)] == ["finished", "finished"]


def test_a_run_whose_directory_is_elsewhere_ends_with_the_error_that_says_so(run_dir):
    run = FakeRun(run_dir)
    source = UntilItEnds(ConductorSource(run), None)
    run.overview = None
    with pytest.raises(RunEndedError, match="it has ended"):
        source.look()


def test_a_directory_of_a_run_that_has_ended_needs_no_cluster(run_dir):
    go_on(run_dir, pid=2**22 + 1)  # above the kernel's largest process id: killed, and left its file
    with open_source(str(run_dir)) as source:
        assert source.look().phase == "cut short"


def test_a_cluster_that_cannot_be_reached_leaves_the_files_with_a_note(run_dir):
    go_on(run_dir)  # says that the cluster is at a port where nobody listens
    with open_source(str(run_dir)) as source:
        facts = source.look()
    assert facts.phase == "running"
    assert facts.note.startswith("from its files only: no cluster at 127.0.0.1:1")
    with pytest.raises(ClusterError, match="no cluster at 127"), open_source(str(run_dir), "127.0.0.1:1"):
        pass


def test_a_dashboard_is_no_way_to_watch(run_dir):
    remedy = "negalign-ray status mine --address http://h:8265"
    with pytest.raises(ConfigError, match=remedy), open_source("mine", "http://h:8265"):
        pass

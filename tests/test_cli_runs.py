"""`stop` and `scale` over a handle, without a cluster."""

from dataclasses import replace

import pytest
from ray.job_submission import JobStatus

from negalign_ray.cli.runs import Elsewhere, stop_run, stop_words, wanted_numbers
from negalign_ray.errors import ConfigError, NoSuchRunError, RunEndedError
from tests.actors.test_jobs import FakeJob, FakeJobs
from tests.actors.test_overview import OVERVIEW


class FakeRun:
    """Ends some questions after it was asked to stop."""

    name = "d2o"

    def __init__(self, *phases: str) -> None:
        self._phases = iter(phases)
        self.was_stopped = False

    def status(self):
        if not self.was_stopped:
            return OVERVIEW
        phase = next(self._phases, None)
        if phase is None:
            raise RunEndedError("it is over")
        return replace(OVERVIEW, phase=phase, step=13)

    def stop(self) -> None:
        self.was_stopped = True


def test_stop_waits_for_the_end_and_says_every_phase_once():
    said: list[str] = []
    run = FakeRun("stopping", "stopping", "evaluating after")
    answer = stop_run(run, wait=True, say=said.append, pause=lambda _: None)
    assert run.was_stopped
    assert said == ["step 13/300: stopping", "step 13/300: evaluating after"]
    assert answer == {"run": "d2o", "run_dir": "/shared/runs/d2o", "step": 13, "num_steps": 300, "has_ended": True}
    assert stop_words(answer) == (
        "run d2o has ended after step 13 of 300; its results are in /shared/runs/d2o\n"
        "to go on: negalign-ray train --resume /shared/runs/d2o"
    )


def test_stop_without_waiting_only_asks():
    run = FakeRun("stopping")
    answer = stop_run(run, wait=False, say=lambda text: pytest.fail(text))
    assert run.was_stopped
    assert stop_words(answer) == "run d2o ends after the step under way; its results will be in /shared/runs/d2o"


@pytest.mark.parametrize("step", [0, 300])
def test_nothing_is_said_of_going_on_where_there_is_nothing_to_go_on_with(step):
    answer = {"run": "d2o", "run_dir": "/r", "step": step, "num_steps": 300, "has_ended": True}
    assert "resume" not in stop_words(answer)


def test_numbers_of_roles_are_read_or_refused():
    assert wanted_numbers(["samplers=4", "scorers=2"]) == {"samplers": 4, "scorers": 2}
    for wrong in ("samplers", "samplers=", "samplers=0", "samplers=-1", "samplers=two", "learners=2", "samplers=1.5"):
        with pytest.raises(ConfigError, match="not of the form ROLE=NUM, with NUM from 1 on and samplers, scorers"):
            wanted_numbers([wrong])


def test_a_run_behind_a_dashboard_is_asked_by_the_same_command():
    jobs = FakeJobs()
    assert Elsewhere("d2o", "http://h:8265", jobs).ask(["scale", "samplers=4"], deadline_s=1) == {"step": 3}
    assert jobs.submitted == ["negalign-ray scale d2o samplers=4 --json"]


def test_a_submitted_run_that_is_not_there_is_told_with_its_last_words():
    jobs = FakeJobs(JobStatus.FAILED, "NoSuchRunError: no run d2o\n")
    run = Elsewhere("d2o", "http://h:8265", jobs)
    with pytest.raises(NoSuchRunError, match=r"^no run d2o$"):
        run.ask(["status"], deadline_s=1)
    jobs.jobs["first"] = FakeJob("first", "negalign-ray train", {"negalign_run": "d2o"}, JobStatus.FAILED)
    with pytest.raises(
        RunEndedError, match=r"has ended \(job first: FAILED\)\. Its last words:\n(.*\n)*NoSuchRunError"
    ):
        run.ask(["status"], deadline_s=1)

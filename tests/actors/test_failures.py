"""Which error ends a run, how to go on, and what signals do; no role is started."""

import errno
import os
import signal
from contextlib import suppress
from dataclasses import dataclass

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError
from ray.train.v2.api.exceptions import WorkerGroupError

from negalign_ray.actors.failures import explained, learner_failure, sigterm_interrupts
from negalign_ray.config import CheckpointsConfig
from negalign_ray.engines.checkpoints import CheckpointStore
from negalign_ray.errors import NonFiniteError, RoleError, StorageError, Terminated
from negalign_ray.settings import load_config

KILLED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: RayTrainWorker\n\tpid: 7\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"
)


@dataclass
class HealthCheckFailed(Exception):
    health_check_failure: Exception


@pytest.fixture
def config(tmp_path):
    return load_config(preset="quickstart", overrides=[f"run.dir={tmp_path}", "run.name=r", "learners.steps=60"])


def notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def test_a_rank_that_died_is_named_before_what_the_others_said_of_broken_collectives():
    dead = HealthCheckFailed(RayActorError("id", KILLED))
    broken = RoleError("RuntimeError('Connection closed by peer')", role="learner", rank=0)
    error = learner_failure(WorkerGroupError("...", {0: RuntimeError("closed"), 1: dead}), broken)
    assert str(error).startswith(
        "learner[1]: The actor died unexpectedly before finishing this task: its worker process has died;"
    )


def test_what_a_rank_said_itself_comes_before_what_ray_train_makes_of_it():
    told = NonFiniteError("loss is nan", role="learner", rank=1)
    assert learner_failure(WorkerGroupError("...", {1: RuntimeError("nan")}), told) is told


def test_a_failure_that_nobody_told_is_ray_train_s_own():
    assert str(learner_failure(RuntimeError("no room"), None)) == "learner[0]: no room; see logs/learner-*.log"
    assert "see this role's file" in str(
        learner_failure(WorkerGroupError("", {0: HealthCheckFailed(ActorDiedError())}), None)
    )


def test_an_error_says_how_to_go_on_when_there_is_a_checkpoint(config):
    store = CheckpointStore(config.run_dir, CheckpointsConfig())
    for step in (10, 20):
        store.begin(step)
        store.commit(step)
    with pytest.raises(RoleError) as caught, explained(config):
        raise RoleError("killed", role="conductor")
    assert notes(caught.value) == [
        f"To go on from the checkpoint after 20 of 60 steps: negalign-ray train --resume {config.run_dir}"
    ]


def test_without_a_checkpoint_there_is_nothing_to_say(config):
    with pytest.raises(Terminated) as caught, explained(config):
        raise Terminated
    assert notes(caught.value) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_run_directory_that_cannot_be_written_is_a_typed_error(config, number):
    with (
        pytest.raises(StorageError, match=rf"{config.run_dir} cannot be written: .*{os.strerror(number)}"),
        explained(config),
    ):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("error", [GetTimeoutError("late"), FileNotFoundError(errno.ENOENT, "a mistake of ours")])
def test_other_errors_of_the_system_are_not_taken_for_a_full_disk(config, error):
    with pytest.raises(type(error)) as caught, explained(config):
        raise error
    assert caught.value is error


def test_the_first_sigterm_interrupts_and_later_ones_change_nothing():
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_interrupts():
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_stays_one_where_ray_makes_an_interrupt_of_it():
    def call_of_ray() -> None:
        with suppress(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        raise KeyboardInterrupt

    with pytest.raises(Terminated), sigterm_interrupts():
        call_of_ray()


def test_ctrl_c_stays_an_interrupt():
    with pytest.raises(KeyboardInterrupt) as caught, sigterm_interrupts():
        raise KeyboardInterrupt
    assert not isinstance(caught.value, Terminated)


def test_sigterm_is_taken_wherever_ctrl_c_is():
    assert issubclass(Terminated, KeyboardInterrupt)
    assert not issubclass(Terminated, Exception), "no handler of errors may swallow it"

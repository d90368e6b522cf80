"""A run that ends otherwise than it should: which error that is, how to go on, and signals that ask for the end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ray.exceptions import RayActorError, RayError
from ray.train.v2.api.exceptions import WorkerGroupError

from negalign_ray.actors.processes import reason_of, typed
from negalign_ray.config import Config
from negalign_ray.engines.checkpoints import CheckpointStore
from negalign_ray.errors import NO_ACCESS, NO_ROOM, NegalignError, RoleError, StorageError, Terminated


def learner_failure(error: BaseException, told: NegalignError | None) -> NegalignError:
    """Why Ray Train ended with `error`; `told` is what the ranks themselves said (see LearnerRoster).

    A process that died says nothing, and the ranks that are left only that their collectives broke: so it comes first.
    """
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    for rank, failure in sorted(failures.items()):
        death = getattr(failure, "health_check_failure", None)  # of Ray Train's WorkerHealthCheckFailedError
        if isinstance(death, RayActorError):
            return typed(death, role="learner", rank=rank)
    return told or RoleError(f"{error}; see logs/learner-*.log", role="learner")


@contextmanager
def explained(config: Config) -> Iterator[None]:
    """Around a run: what ends it gets a note on how to go on, and a run directory that cannot be written a type."""
    try:
        yield
    except OSError as error:
        if isinstance(error, RayError) or error.errno not in (*NO_ROOM, *NO_ACCESS):
            raise
        failure = StorageError(f"{config.run_dir} cannot be written: {reason_of(error)}")
        _add_note(failure, config)
        raise failure from error
    except (NegalignError, KeyboardInterrupt) as error:
        _add_note(error, config)
        raise


def _add_note(error: BaseException, config: Config) -> None:
    checkpoints = CheckpointStore(config.run_dir, config.checkpoints).checkpoints()
    if checkpoints:
        done = f"{checkpoints[-1].step} of {config.learners.steps} steps"
        error.add_note(f"To go on from the checkpoint after {done}: negalign-ray train --resume {config.run_dir}")


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Inside, the first SIGTERM raises Terminated in the main thread, as Ctrl-C raises KeyboardInterrupt.

    Later ones change nothing: who sends them kills the process anyway once their patience has ended. To be entered
    after `ray.init`, which sets a handler of its own. Outside the main thread there is no handling signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received = False

    def raise_once(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if not received:
            received = True
            raise Terminated

    before = signal.signal(signal.SIGTERM, raise_once)
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if received and not isinstance(interrupt, Terminated):
            raise Terminated from interrupt  # within its calls Ray makes a plain one of what a handler raises
        raise
    finally:
        signal.signal(signal.SIGTERM, before)

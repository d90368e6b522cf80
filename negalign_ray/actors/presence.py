"""A run among others in one cluster: its name is taken while it goes on, and nothing of it stays afterwards."""

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from negalign_ray.actors.conductor import Conductor
from negalign_ray.actors.locate import FILE_NAME, Meeting, namespace_of, write_meeting
from negalign_ray.actors.plan import Plan
from negalign_ray.actors.processes import conductor_name, start_actor
from negalign_ray.actors.reservations import give_back_leftovers, prefix_of
from negalign_ray.errors import RunExistsError

log = logging.getLogger(__name__)


def start_conductor(plan: Plan, resume_from: Path | None = None) -> Any:
    """On the driver's node, so that the loss of another one does not end the run. It asks for no CPU and fits there.

    RunExistsError when a run of this name goes on in the cluster: the namespace of its actors is taken.
    """
    name = plan.config.run.name
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {
        "name": conductor_name(name),
        "namespace": namespace_of(name),
        "scheduling_strategy": here,
        "max_concurrency": num_calls_at_once(plan.config.learners.num),
    }
    try:
        return start_actor(Conductor, options, plan, resume_from)
    except ValueError as error:  # Ray's word for a name that is taken
        raise RunExistsError(
            f"run.name={name}: a run of this name goes on in this cluster. Choose another one by --set run.name=NAME, "
            f"or end that run by `negalign-ray stop {name}`."
        ) from error


def num_calls_at_once(num_learners: int) -> int:
    """Of the conductor. Every learner rank may wait in a `pull`, with a `report` or a last word beside it; those who
    look, stop or scale must get through even then."""
    return max(256, 4 * num_learners + 64)


def await_end(name: str, *, patience_s: float = 10.0) -> None:
    """Until Ray has let go of the run's actors, which were killed: the next run may have the same name.

    Placement groups of a conductor that could not give them back itself go, too.
    """
    deadline_s = time.monotonic() + patience_s
    try:
        give_back_leftovers(prefix_of(name))
        while left := actors_of(name):
            if time.monotonic() > deadline_s:
                log.warning("%s have not ended within %g s of being killed", ", ".join(left), patience_s)
                return
            time.sleep(0.1)
    except RayError as error:  # the cluster is gone, and the run's actors with it
        log.warning("%s", error)


def actors_of(name: str) -> list[str]:
    """Names of a run's actors that are alive, all but those of Ray Train, which have none."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return sorted(actor["name"] for actor in actors if actor["namespace"] == namespace_of(name))


@contextmanager
def announced(run_dir: Path) -> Iterator[None]:
    """While the run goes on, its folder says which cluster it is in."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    address = ray.get_runtime_context().gcs_address
    write_meeting(run_dir, Meeting(address=address, host=socket.gethostname(), pid=os.getpid(), started_at=now))
    try:
        yield
    finally:
        (run_dir / FILE_NAME).unlink(missing_ok=True)

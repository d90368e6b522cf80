"""Starting or joining a Ray cluster, and refusing at once what it cannot hold."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from negalign_ray.actors.plan import Plan
from negalign_ray.errors import PlacementError

OBJECT_STORE_BYTES = 4 * 1024**3  # of a cluster started for one run; weights of two versions and the groups fit well


@dataclass(frozen=True)
class Placement:
    """What one role asks of the cluster."""

    role: str
    num: int
    cpus: float
    gpus: float
    threads: int


def placements(plan: Plan) -> list[Placement]:
    config = plan.config
    roles = [("sampler", config.samplers.num, config.samplers), ("learner", config.learners.num, config.learners)]
    if config.scorers.heads:
        roles.append(("scorer", config.scorers.num, config.scorers))
    num_references = config.references.num * len(plan.reference_pools)
    if num_references:
        roles.append(("reference", num_references, config.references))
    if config.uses_guide:
        roles.append(("guide", 1, config.guide))
    return [Placement(role, num, section.cpus, section.gpus, section.threads) for role, num, section in roles]


@contextmanager
def cluster(plan: Plan) -> Iterator[None]:
    """Join the cluster that this process is in or RAY_ADDRESS names, or start one here and stop it afterwards."""
    with shared_cluster():
        require_room(placements(plan))
        yield


@contextmanager
def shared_cluster() -> Iterator[None]:
    """One cluster for everything inside: a `cluster` or `shared_cluster` within it joins it and leaves it running."""
    if ray.is_initialized():
        yield
        return
    start_ray()
    try:
        yield
    finally:
        stop_ray()


def stop_ray() -> None:
    ray.shutdown()


def start_ray() -> None:
    """A local cluster is token-authenticated (see the package's __init__), logs to files, its dashboard on loopback."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what hides no GPU; see device_of
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        ray.init(**quiet, include_dashboard=True, dashboard_host="127.0.0.1", object_store_memory=OBJECT_STORE_BYTES)
    for name in ("ray", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def require_room(places: Sequence[Placement]) -> None:
    """PlacementError unless the cluster could hold all of them at once."""
    total = ray.cluster_resources()
    for resource, attribute in (("CPU", "cpus"), ("GPU", "gpus")):
        wanted = {p.role: p.num * getattr(p, attribute) for p in places}
        there = total.get(resource, 0.0)
        if sum(wanted.values()) > there + 1e-9:
            parts = ", ".join(f"{role}s {amount:g}" for role, amount in wanted.items() if amount)
            raise PlacementError(
                f"the run asks for {sum(wanted.values()):g} {resource} ({parts}) and the cluster has {there:g}; lower "
                f"<role>.{attribute} or <role>.num, or add nodes. Roles that take turns may share a core."
            )

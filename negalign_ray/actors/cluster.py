"""Starting or joining a Ray cluster, and refusing at once what it cannot hold."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray

from negalign_ray.actors.plan import Plan
from negalign_ray.config import Resources
from negalign_ray.errors import PlacementError, RoleError

OBJECT_STORE_BYTES = 4 * 1024**3  # of a cluster started for one run; weights of two versions and the groups fit well


@dataclass(frozen=True)
class Placement:
    """What one role asks of the cluster."""

    role: str
    num: int
    cpus: float
    gpus: float
    threads: int
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, role: str, num: int, section: Resources) -> "Placement":
        return cls(role, num, section.cpus, section.gpus, section.threads, section.labels)


@dataclass(frozen=True)
class Node:
    """What one node of the cluster has: `resources` by Ray's names ("CPU", "GPU"), and its labels."""

    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)


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
    return [Placement.of(role, num, section) for role, num, section in roles]


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


def start_ray(*, init: Callable[..., Any] = ray.init) -> None:
    """A local cluster is token-authenticated (see the package's __init__), logs to files, its dashboard on loopback.

    Raises RoleError (role cluster) when Ray does not start, or when the cluster of RAY_ADDRESS cannot be joined.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what hides no GPU; see device_of
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    address = os.environ.get("RAY_ADDRESS")
    try:
        init(**init_settings(address))
    except Exception as error:  # Ray raises Exception itself when its node does not come up
        raise _start_error(error, address) from error
    for name in ("ray", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)


def init_settings(address: str | None) -> dict[str, Any]:
    """Arguments of `ray.init`: the cluster at `address` (RAY_ADDRESS), or without one a cluster of our own.

    "local" must be said: else Ray joins any cluster that `ray start` left here, and refuses our settings for it.
    """
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        return quiet
    own = {"address": "local", "include_dashboard": True, "dashboard_host": "127.0.0.1"}
    return quiet | own | {"object_store_memory": OBJECT_STORE_BYTES}


def _start_error(error: Exception, address: str | None) -> RoleError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if address:
        return RoleError(
            f"RAY_ADDRESS={address} names no cluster that can be joined ({reason}); look at `ray status` there. "
            "Correct it, give this process that cluster's RAY_AUTH_TOKEN, or unset RAY_ADDRESS to start a cluster here",
            role="cluster",
        )
    return RoleError(
        f"Ray did not start on this machine ({reason}); see gcs_server.err and raylet.err in session_latest/logs of "
        "RAY_TMPDIR (/tmp/ray). Most often the machine is too busy (Ray gives itself 30 s) or its memory or disk is "
        "full: end other work and try again, or set RAY_ADDRESS to a cluster that is up",
        role="cluster",
    )


def require_room(places: Sequence[Placement]) -> None:
    """PlacementError unless the cluster could hold all of them at once."""
    check_room(places, [Node(node["Resources"], node["Labels"]) for node in ray.nodes() if node["Alive"]])


def check_room(places: Sequence[Placement], nodes: Sequence[Node]) -> None:
    """PlacementError unless every group of labelled nodes holds the roles that ask for it, and all nodes hold all.

    It compares sums: whether the parts also fit onto single nodes is left to Ray and `deadlines.start_s`.
    """
    selectors = {tuple(sorted(place.labels.items())) for place in places if place.labels}
    for selector in sorted(selectors):
        chosen = dict(selector)
        there = [node for node in nodes if chosen.items() <= node.labels.items()]
        _require_sum([place for place in places if place.labels == chosen], there, labels=chosen)
    _require_sum(places, nodes, labels={})


def _require_sum(places: Sequence[Placement], nodes: Sequence[Node], *, labels: Mapping[str, str]) -> None:
    for resource, attribute in (("CPU", "cpus"), ("GPU", "gpus")):
        wanted = {place.role: place.num * getattr(place, attribute) for place in places}
        there = sum(node.resources.get(resource, 0.0) for node in nodes)
        if sum(wanted.values()) > there + 1e-9:
            parts = ", ".join(f"{role}s {amount:g}" for role, amount in wanted.items() if amount)
            asked = ",".join(f"{name}={value}" for name, value in labels.items())
            holder = f"the {len(nodes)} node(s) with the labels {asked} have" if labels else "the cluster has"
            more = f"add nodes (ray start --labels={asked})" if labels else "add nodes"
            raise PlacementError(
                f"the run asks for {sum(wanted.values()):g} {resource} ({parts}) and {holder} {there:g}; lower "
                f"<role>.{attribute} or <role>.num, or {more}. Roles that take turns may share a core."
            )

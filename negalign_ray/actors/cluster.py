"""Starting or joining a Ray cluster, and refusing at once what it cannot hold."""

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from negalign_ray.actors.host_memory import require_memory_here
from negalign_ray.actors.locate import namespace_of, why_silent
from negalign_ray.actors.packing import Node, Placement, explain_missing, require_seats, require_whole_gpus, seat
from negalign_ray.actors.plan import Plan
from negalign_ray.actors.token import ensure_token
from negalign_ray.config import OBJECT_STORE_BYTES
from negalign_ray.errors import ClusterError, PlacementError, RoleError, TokenError

log = logging.getLogger(__name__)
RAY_TRAIN = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # so late is the end of the learners, or of one of them, noticed
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process that warns training functions; ours do not listen
}
HOST_PORT = re.compile(r"[\w.\[\]:-]+:\d+")  # not "auto", "local" or ray://


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
    if config.evaluation.every:
        roles.append(("evaluation scorer", 1, config.scorers))
    return [Placement.of(role, num, section) for role, num, section in roles]


def evaluation_placements(plan: Plan) -> list[Placement]:
    """What the evaluation after training needs: the learners are gone, a judge and one model at a time are there."""
    if not plan.config.evaluation.enabled:
        return []
    stay = [place for place in placements(plan) if place.role not in ("learner", "evaluation scorer")]
    return stay + _evaluators(plan)


def answering_placements(plan: Plan) -> list[Placement]:
    """What `negalign-ray evaluate` needs: samplers answer, then a judge and one model at a time."""
    samplers = next(place for place in placements(plan) if place.role == "sampler")
    return [samplers, *_evaluators(plan)]


def _evaluators(plan: Plan) -> list[Placement]:
    scorers, references = plan.config.scorers, plan.config.references
    return [
        Placement.of("evaluation scorer", 1, scorers),
        Placement.of("evaluation reference", 1, references),
    ]


@contextmanager
def cluster(plan: Plan, *, train: bool = True) -> Iterator[None]:
    """Join the cluster that this process is in or RAY_ADDRESS names, or start one here and stop it afterwards.

    PlacementError unless it can hold the run (`train`), or an evaluation alone.
    """
    now, later = (placements(plan), evaluation_placements(plan)) if train else (answering_placements(plan), [])
    require_memory_here(plan, now)
    with shared_cluster(namespace_of(plan.config.run.name) if train else None):
        require_room(now, later=later, patience_s=plan.config.deadlines.place_s)
        yield


@contextmanager
def shared_cluster(namespace: str | None = None) -> Iterator[None]:
    """One cluster for everything inside: a `cluster` or `shared_cluster` within it joins it and leaves it running.

    Actors without a namespace of their own, as those of Ray Train, live in `namespace`; None = one of nobody else.
    """
    if ray.is_initialized():
        yield
        return
    start_ray(namespace)
    try:
        yield
    finally:
        stop_ray()


def stop_ray() -> None:
    ray.shutdown()


def start_ray(namespace: str | None = None, *, init: Callable[..., Any] = ray.init) -> None:
    """A local cluster is token-authenticated (see the package's __init__), logs to files, its dashboard on loopback.

    Raises RoleError (role cluster) when Ray does not start here, ClusterError when the cluster of RAY_ADDRESS cannot be
    joined, and TokenError when that cluster refuses this process's token.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what hides no GPU; see device_of
    for name, value in RAY_TRAIN.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        ensure_token()
    elif HOST_PORT.fullmatch(address) and (reason := why_silent(address)):  # Ray itself would ask for minutes
        raise _start_error(ConnectionError(reason), address)
    try:
        init(**init_settings(address), namespace=namespace)
    except Exception as error:  # Ray raises Exception itself when its node does not come up
        if address and (refused := refusal(error, address)):
            raise refused from error
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


def refusal(error: Exception, address: str) -> TokenError | None:
    """What `ray.init` raised, where the cluster did not take the token of this process; else None."""
    return token_error(address) if "uthenticat" in f"{error!r} {error.__cause__!r}" else None


def token_error(address: str) -> TokenError:
    """Says where a token was looked for, never the token."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        reason = f"RAY_AUTH_MODE is {os.environ.get('RAY_AUTH_MODE') or 'not set'}, so that none was sent"
    elif os.environ.get("RAY_AUTH_TOKEN"):
        reason = "that of RAY_AUTH_TOKEN is another one"
    else:
        reason = f"{os.environ.get('RAY_AUTH_TOKEN_PATH') or '~/.ray/auth_token'} has none, or another one"
    return TokenError(
        f"the cluster at {address} did not get its token from this process: {reason}. Set RAY_AUTH_MODE=token, and put "
        "that cluster's token into a file that RAY_AUTH_TOKEN_PATH names, or into ~/.ray/auth_token."
    )


def _start_error(error: Exception, address: str | None) -> ClusterError | RoleError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if address:
        return ClusterError(
            f"RAY_ADDRESS={address} names no cluster that can be joined ({reason}); look at `ray status` there. "
            "Correct it, give this process that cluster's RAY_AUTH_TOKEN, or unset RAY_ADDRESS to start a cluster here."
        )
    return RoleError(
        f"Ray did not start on this machine ({reason}); see gcs_server.err and raylet.err in session_latest/logs of "
        "RAY_TMPDIR (/tmp/ray). Most often the machine is too busy (Ray gives itself 30 s) or its memory or disk is "
        "full: end other work and try again, or set RAY_ADDRESS to a cluster that is up",
        role="cluster",
    )


def require_room(places: Sequence[Placement], *, patience_s: float, later: Sequence[Placement] = ()) -> None:
    """PlacementError at once when the cluster cannot hold `places` together (or `later`, when those have ended), and
    after `patience_s` when it could, but other work does not leave the room."""
    require_whole_gpus((*places, *later))
    nodes = live_nodes()
    for phase in (places, later):
        require_seats(phase, nodes)
    wait_for_seats(places, free_nodes, patience_s=patience_s)


def wait_for_seats(
    places: Sequence[Placement],
    free: Callable[[], Sequence[Node]],
    *,
    patience_s: float,
    pause: Callable[[float], None] = time.sleep,
    every_s: float = 1.0,
    advice: str | None = None,
) -> None:
    """Look again and again until `free` nodes hold all bundles; PlacementError after `patience_s`."""
    for attempt in range(int(patience_s / every_s) + 1):
        if attempt == 1:
            log.info("the cluster is busy; waiting up to deadlines.place_s=%g s for room", patience_s)
        if attempt:
            pause(every_s)
        seating = seat(places, nodes := free())
        if seating.complete:
            return
    missing = explain_missing(seating, places, nodes, where="what other work leaves free of the cluster")
    wait = f"wait for the other work to end, or raise deadlines.place_s={patience_s:g} s"
    raise PlacementError(f"{missing} {advice or f'An idle cluster would hold the run: {wait}.'}")


def live_nodes() -> list[Node]:
    """Every live node with all that it has."""
    return [
        node_of(node["NodeManagerAddress"], node["Resources"], node.get("Labels") or {})
        for node in ray.nodes()
        if node["Alive"]
    ]


def free_nodes() -> list[Node]:
    """Every live node with what nobody has reserved. How free GPUs are cut up is unknown."""
    from ray._private.state import available_resources_per_node  # the one source; Ray's own libraries read it here

    free = available_resources_per_node()  # a node that has only just come up may not have reported yet: all is free
    return [
        node_of(node["NodeManagerAddress"], free.get(node["NodeID"], node["Resources"]), node.get("Labels") or {})
        for node in ray.nodes()
        if node["Alive"]
    ]


def node_of(name: str, resources: Mapping[str, float], labels: Mapping[str, str]) -> Node:
    """From Ray's names of resources. 2.4 GPUs are two whole devices and 0.4 of a third."""
    gpus = resources.get("GPU", 0.0)
    whole, share = int(gpus), gpus - int(gpus)
    devices = (1.0,) * whole + ((share,) if share else ())
    memory = resources.get("memory")
    return Node(name, resources.get("CPU", 0.0), devices, None if memory is None else int(memory), labels=labels)

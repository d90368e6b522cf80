"""Placement groups: every actor of a run has one of its own, so that what it held is free the moment it leaves.

    ask for all groups of a run --> all there: keep them
                                --> some missing: give all back, pause, ask again, until `patience_s` is over

Nobody holds a part of what it needs while it waits for the rest, so two runs that start at once cannot block each
other with half of their roles each.
"""

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import ray
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from negalign_ray.actors.cluster import free_nodes
from negalign_ray.actors.packing import Node, Placement, Seat, Seating, explain_missing
from negalign_ray.errors import PlacementError

log = logging.getLogger(__name__)
ATTEMPT_S = 5.0  # how long one asking waits; the cluster answers within a second where there is room


class Groups(Protocol):
    """What is asked of Ray."""

    def ask(self, name: str, place: Placement) -> Any:
        """Ask for a group of `place.num` bundles; returns at once."""

    def is_there(self, group: Any, *, wait_s: float) -> bool: ...

    def nodes(self, group: Any) -> frozenset[str] | None:
        """That it is on; None while it is not there, or not on nodes that live."""

    def give_back(self, group: Any) -> None: ...

    def free(self) -> Sequence[Node]:
        """What nobody holds."""


class RayGroups:
    def ask(self, name: str, place: Placement) -> PlacementGroup:
        labels = [dict(place.labels)] * place.num if place.labels else None
        return placement_group([bundle_of(place)] * place.num, strategy="PACK", name=name, bundle_label_selector=labels)

    def is_there(self, group: PlacementGroup, *, wait_s: float) -> bool:
        return group.wait(max(wait_s, 0.1))

    def nodes(self, group: PlacementGroup) -> frozenset[str] | None:
        row = placement_group_table(group)
        if row.get("state") != "CREATED":
            return None
        nodes = frozenset(row["bundles_to_node_id"].values())
        return nodes if nodes <= {node["NodeID"] for node in ray.nodes() if node["Alive"]} else None

    def give_back(self, group: PlacementGroup) -> None:
        remove_placement_group(group)

    def free(self) -> Sequence[Node]:
        return free_nodes()


class Reservations:
    """The groups of one run, by the name of who sits there. Its calls block; several threads may make them."""

    def __init__(
        self,
        prefix: str,  # of the groups' names, see `prefix_of`
        *,
        patience_s: float,
        groups: Groups | None = None,
        pause: Callable[[float], None] = time.sleep,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._prefix, self._patience_s = prefix, patience_s
        self._groups = groups or RayGroups()
        self._pause, self._now_s = pause, now_s
        self._held: dict[str, Any] = {}
        self._places: dict[str, Placement] = {}

    def take(self, wanted: Mapping[str, Placement]) -> None:
        """A group for every name, or none at all: PlacementError, which says whose bundles have no place."""
        wanted = {name: place for name, place in wanted.items() if bundle_of(place)}  # nothing asked, nothing to hold
        ends_s = self._now_s() + self._patience_s
        while True:
            asked = {name: self._groups.ask(f"{self._prefix}{name}", place) for name, place in wanted.items()}
            missing = self._missing(asked)
            if not missing:
                self._held |= asked
                self._places |= wanted
                return
            refusal = explain(missing, wanted, self._groups.free())
            for group in asked.values():
                self._groups.give_back(group)
            if self._now_s() >= ends_s:
                raise PlacementError(f"{refusal} deadlines.place_s={self._patience_s:g} s is how long a run waits.")
            log.info("%s Asking again.", refusal)
            self._pause(random.uniform(0.2, 2.0))  # at another moment than another run that does the same

    def options(self, name: str) -> dict[str, Any]:
        """What of an actor's options puts it into its group. The bundle has the labels; Ray wants them there alone."""
        if name not in self._held:
            return {}
        strategy = PlacementGroupSchedulingStrategy(self._held[name], placement_group_bundle_index=0)
        return {"scheduling_strategy": strategy, "label_selector": None}

    def nodes(self, name: str) -> frozenset[str] | None:
        """That the actor's place is on: None when its node is gone. Ray itself may move the place to another one."""
        if name not in self._places:
            return frozenset()  # it asks for nothing
        return self._groups.nodes(self._held[name]) if name in self._held else None

    def renew(self, name: str) -> None:
        """Before another actor takes the place: where it went down with its node, a new one. PlacementError."""
        if self.nodes(name) is not None:
            return
        group = self._held.pop(name, None)
        if group is not None:
            self._groups.give_back(group)
        self.take({name: self._places[name]})

    def give_back(self, name: str) -> None:
        """Also one that was never taken."""
        self._places.pop(name, None)
        group = self._held.pop(name, None)
        if group is not None:
            self._groups.give_back(group)

    def give_back_all(self) -> None:
        for name in list(self._places):
            self.give_back(name)

    def _missing(self, asked: Mapping[str, Any]) -> list[str]:
        ends_s = self._now_s() + ATTEMPT_S
        return [
            name
            for name, group in asked.items()
            if not self._groups.is_there(group, wait_s=max(0.0, ends_s - self._now_s()))
        ]


def bundle_of(place: Placement) -> dict[str, float]:
    """As Ray counts, without what is 0; empty for an actor that reserves nothing."""
    return {name: amount for name, amount in (("CPU", place.cpus), ("GPU", place.gpus)) if amount}


def prefix_of(run_name: str) -> str:
    """Of the names of a run's groups: the same in the driver and its conductor, and in no other program."""
    return f"{run_name}@{ray.get_runtime_context().get_job_id()}/"


def give_back_leftovers(prefix: str) -> None:
    """The groups of a run whose conductor is dead: Ray would keep them until the whole program ends."""
    for row in placement_group_table().values():
        if row["name"].startswith(prefix) and row["state"] != "REMOVED":
            remove_placement_group(get_placement_group(row["name"]))


def explain(missing: Sequence[str], wanted: Mapping[str, Placement], nodes: Sequence[Node]) -> str:
    """Whose bundles have no place, beside those that have one."""
    places: dict[str, Placement] = {}
    without: dict[str, int] = {}
    seats = []
    for name, place in wanted.items():
        num = places[place.role].num + place.num if place.role in places else place.num
        places[place.role] = Placement(place.role, num, place.cpus, place.gpus, place.threads, place.labels)
        if name in missing:
            without[place.role] = without.get(place.role, 0) + place.num
        else:
            seats += [Seat(place.role, rank, node=0) for rank in range(place.num)]
    seating = Seating(tuple(seats), without)
    return explain_missing(seating, list(places.values()), nodes, where="what is free of the cluster")

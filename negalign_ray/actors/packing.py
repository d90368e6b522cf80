"""Who could sit where: the roles' bundles on the nodes of a cluster, as Ray counts resources. Pure; knows no Ray.

A bundle is what one actor reserves. It sits on one node; a share of a GPU lies on one device, and whole GPUs are
devices that nobody shares. Bundles of a role are alike, so first fit in a few orders of the roles is tried: the
exact answer is NP-hard, and Ray itself places one actor after the other.

    2 nodes of 8 CPU, 3 learners of 5 CPU -> learner 0 on node 0, learner 1 on node 1, learner 2 nowhere
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice, permutations

from negalign_ray.config import Resources
from negalign_ray.errors import PlacementError

SLACK = 1e-6  # Ray counts in ten-thousandths; sums of fractions such as 0.1 must not fail by rounding
MAX_ORDERS = 120  # of the roles; five roles have as many
GIB = 1024**3
SECTION = {
    "sampler": "samplers",
    "learner": "learners",
    "scorer": "scorers",
    "reference": "references",
    "guide": "guide",
    "evaluation scorer": "scorers",
    "evaluation reference": "references",
}


@dataclass(frozen=True)
class Placement:
    """What one role asks of the cluster: `num` bundles that are alike."""

    role: str
    num: int
    cpus: float
    gpus: float
    threads: int
    labels: Mapping[str, str] = field(default_factory=dict)  # that a node must carry
    memory_bytes: int = 0  # of one bundle, where memory is to be counted; Ray does not reserve it

    @classmethod
    def of(cls, role: str, num: int, section: Resources) -> "Placement":
        return cls(role, num, section.cpus, section.actor_gpus, section.threads, section.labels)

    @property
    def bundle(self) -> str:
        """As a reader wants it: "8 CPU + 1 GPU"."""
        return describe_amounts(cpus=self.cpus, gpus=self.gpus, memory_bytes=self.memory_bytes)


@dataclass(frozen=True)
class Node:
    """What one node has (or has left): CPUs, the free share of each GPU, and memory where it is known."""

    name: str
    cpus: float
    gpus: tuple[float, ...] = ()
    memory_bytes: int | None = None
    gpu_bytes: int | None = None  # of each device
    labels: Mapping[str, str] = field(default_factory=dict)

    def takes(self, place: Placement) -> tuple["Node", tuple[int, ...]] | None:
        """What is left after one bundle, and the devices it lies on; None when it does not fit."""
        if self.cpus + SLACK < place.cpus or not place.labels.items() <= self.labels.items():
            return None
        if self.memory_bytes is not None and self.memory_bytes < place.memory_bytes:
            return None
        devices = _devices(self.gpus, place.gpus)
        if devices is None:
            return None
        share = min(place.gpus, 1.0)
        gpus = tuple(free - share if index in devices else free for index, free in enumerate(self.gpus))
        memory = None if self.memory_bytes is None else self.memory_bytes - place.memory_bytes
        return replace(self, cpus=self.cpus - place.cpus, gpus=gpus, memory_bytes=memory), devices


@dataclass(frozen=True, slots=True)
class Seat:
    role: str
    rank: int
    node: int  # index
    gpus: tuple[int, ...] = ()  # indices of devices of that node


@dataclass(frozen=True)
class Seating:
    seats: tuple[Seat, ...]
    missing: Mapping[str, int]  # role -> bundles without a place

    @property
    def complete(self) -> bool:
        return not self.missing

    def on(self, node: int) -> tuple[Seat, ...]:
        return tuple(self._by_node.get(node, ()))

    @cached_property
    def _by_node(self) -> dict[int, list[Seat]]:
        seats: dict[int, list[Seat]] = {}
        for seat in self.seats:
            seats.setdefault(seat.node, []).append(seat)
        return seats


def seat(places: Sequence[Placement], nodes: Sequence[Node]) -> Seating:
    """A seating of all bundles, if one of the tried orders has one; else the one that seats small roles first, so that
    what is missing belongs to the roles that ask for most."""
    largest_first = sorted(places, key=lambda place: (place.gpus, place.cpus, place.memory_bytes), reverse=True)
    for order in islice(permutations(largest_first), MAX_ORDERS):
        seating = _first_fit(order, nodes)
        if seating.complete:
            return seating
    return _first_fit(sorted(places, key=lambda place: (place.num * place.gpus, place.num * place.cpus)), nodes)


def require_seats(places: Sequence[Placement], nodes: Sequence[Node], *, where: str = "the cluster") -> Seating:
    """PlacementError that names the roles without a place, what is there, and what to change."""
    seating = seat(places, nodes)
    if not seating.complete:
        raise PlacementError(explain_missing(seating, places, nodes, where=where))
    return seating


def explain_missing(seating: Seating, places: Sequence[Placement], nodes: Sequence[Node], *, where: str) -> str:
    by_role = {place.role: place for place in places}
    parts = []
    for role, num in seating.missing.items():
        place = by_role[role]
        labels = f" on nodes labelled {_labels(place.labels)}" if place.labels else ""
        parts.append(f"{num} of {place.num} {role} bundle(s) of {place.bundle} each{labels}")
    asking = [by_role[role] for role in seating.missing]
    fitting = [node for node in nodes if any(place.labels.items() <= node.labels.items() for place in asking)]
    there = describe_nodes(fitting) + (" labelled so" if all(place.labels for place in asking) else "")
    placed = Counter(seat.role for seat in seating.seats)
    beside = ", ".join(f"{num} {role}(s)" for role, num in placed.items()) or "nothing"
    remedies = "; ".join(_remedy(by_role[role], placed[role], num, nodes) for role, num in seating.missing.items())
    return (
        f"no place for {' and '.join(parts)}. {_capital(where)} has {there}; what fits: "
        f"{beside}. {_capital(remedies)}. Roles that take turns may share a core (fractions of cpus)."
    )


def describe_nodes(nodes: Sequence[Node]) -> str:
    """ "3 node(s) with 24 CPU + 2 GPU, the largest with 8 CPU + 1 GPU" """
    total = describe_amounts(cpus=sum(n.cpus for n in nodes), gpus=sum(sum(n.gpus) for n in nodes))
    if len(nodes) < 2:
        return f"{len(nodes)} node(s) with {total}"
    largest = max(nodes, key=lambda node: (sum(node.gpus), node.cpus))
    return f"{len(nodes)} nodes with {total}, the largest with " + describe_amounts(
        cpus=largest.cpus, gpus=sum(largest.gpus)
    )


def describe_amounts(*, cpus: float, gpus: float, memory_bytes: int = 0) -> str:
    parts = [f"{round(cpus, 4):g} CPU"]
    parts += [f"{round(gpus, 4):g} GPU"] if gpus else []
    parts += [f"{memory_bytes / GIB:.1f} GiB"] if memory_bytes else []
    return " + ".join(parts)


def require_whole_gpus(places: Iterable[Placement]) -> None:
    """Ray gives a share of one device, or whole devices. PlacementError otherwise."""
    for place in places:
        if place.gpus > 1 and place.gpus != int(place.gpus):
            raise PlacementError(
                f"{SECTION[place.role]}.gpus={place.gpus:g}: an actor gets a share of one GPU (below 1) or whole GPUs; "
                f"use {int(place.gpus)} or {int(place.gpus) + 1}."
            )


def _first_fit(places: Iterable[Placement], nodes: Sequence[Node]) -> Seating:
    free = list(nodes)
    seats: list[Seat] = []
    missing: Counter[str] = Counter()
    for place in places:
        # As Ray: what needs no GPU keeps off the nodes that have some, where it can.
        order = sorted(range(len(free)), key=lambda index: bool(free[index].gpus) and not place.gpus)
        position = 0  # bundles of a role are alike: a node that was full for one is full for the next
        for rank in range(place.num):
            taken = None
            while position < len(order) and (taken := free[order[position]].takes(place)) is None:
                position += 1
            if taken is None:
                missing[place.role] += place.num - rank
                break
            index = order[position]
            free[index], devices = taken
            seats.append(Seat(place.role, rank, index, devices))
    return Seating(tuple(seats), missing)


def _devices(free: Sequence[float], wanted: float) -> tuple[int, ...] | None:
    """A share goes to the fullest device that still has room, so that whole ones stay whole."""
    if not wanted:
        return ()
    if wanted < 1:
        roomy = [index for index, share in enumerate(free) if share + SLACK >= wanted]
        return (min(roomy, key=lambda index: free[index]),) if roomy else None
    whole = [index for index, share in enumerate(free) if share + SLACK >= 1]
    return tuple(whole[: int(wanted)]) if len(whole) >= wanted else None


def _remedy(place: Placement, placed: int, missing: int, nodes: Sequence[Node]) -> str:
    section = SECTION[place.role]
    labels = f", started with `--labels={_labels(place.labels)}`" if place.labels else ""
    more = f"add room for {missing} more (nodes with at least {place.bundle}{labels})"
    lower = f"lower {section}.cpus" + (f" or {section}.gpus" if place.gpus else "")
    fewer = f"set {section}.num={placed}" if placed and place.role in ("sampler", "learner", "scorer") else ""
    alone = any(node.takes(place) for node in nodes)
    hint = "" if alone else " (no node holds even one)"
    return f"{', '.join(filter(None, (fewer, lower)))}, or {more}{hint}"


def _labels(labels: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

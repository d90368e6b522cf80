"""Every actor has a placement group of its own; a run gets all of them or holds none while it waits."""

import time

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.util.placement_group import get_current_placement_group, placement_group_table

from negalign_ray.actors.cluster import free_nodes
from negalign_ray.actors.packing import Node, Placement
from negalign_ray.actors.reservations import ATTEMPT_S, Reservations, bundle_of, give_back_leftovers, prefix_of
from negalign_ray.errors import PlacementError


def place(role: str, cpus: float, num: int = 1, **more) -> Placement:
    return Placement(role, num, cpus, gpus=0.0, threads=1, **more)


class FakeGroups:
    """A cluster of some CPUs, which places groups in the order in which they were asked for. Waiting takes time."""

    def __init__(self, cpus: float, clock: "Clock") -> None:
        self.cpus, self._clock = cpus, clock
        self.placed: dict[str, float] = {}
        self.asked: list[str] = []
        self.down: set[str] = set()  # groups whose node is gone

    def ask(self, name: str, place: Placement) -> str:
        assert name not in self.placed, "a name is taken"
        self.asked.append(name)
        wanted = place.cpus * place.num
        if wanted <= self.cpus:
            self.cpus -= wanted
            self.placed[name] = wanted
        return name

    def is_there(self, group: str, *, wait_s: float) -> bool:
        if group not in self.placed:
            self._clock.now_s += wait_s
        return group in self.placed

    def nodes(self, group: str) -> frozenset[str] | None:
        return frozenset({"here"}) if group in self.placed and group not in self.down else None

    def give_back(self, group: str) -> None:
        self.cpus += self.placed.pop(group, 0.0)

    def free(self) -> list[Node]:
        return [Node("n", self.cpus)]


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.pauses: list[float] = []
        self.meanwhile = lambda: None

    def __call__(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds
        self.meanwhile()


def make(cpus: float, *, patience_s: float = 20.0) -> tuple[Reservations, FakeGroups, Clock]:
    clock = Clock()
    groups = FakeGroups(cpus, clock)
    made = Reservations("run@01/", patience_s=patience_s, groups=groups, pause=clock.pause, now_s=clock)
    return made, groups, clock


ROLES = {"sampler-0": place("sampler", 1), "sampler-1": place("sampler", 1), "learners": place("learner", 0.5, num=2)}


def test_each_gets_a_group_and_gives_it_back_alone():
    held, groups, clock = make(3)
    held.take(ROLES)
    assert groups.placed == {"run@01/sampler-0": 1, "run@01/sampler-1": 1, "run@01/learners": 1}
    held.give_back("sampler-0")
    assert (groups.cpus, clock.pauses) == (1, [])
    held.give_back_all()
    assert (groups.cpus, groups.placed) == (3, {})


def test_without_room_for_all_nothing_is_held_and_the_error_says_whose_bundles_are_missing():
    held, groups, clock = make(2)
    with pytest.raises(PlacementError) as caught:
        held.take(ROLES)
    assert str(caught.value).startswith(
        "no place for 2 of 2 learner bundle(s) of 0.5 CPU each. What is free of the cluster has 1 node(s) with 0 CPU; "
        "what fits: 2 sampler(s)."
    )
    assert "deadlines.place_s=20 s" in str(caught.value)
    assert (groups.cpus, groups.placed) == (2, {})
    assert 20 <= clock.now_s <= 20 + ATTEMPT_S + 2


def test_while_it_pauses_another_run_finds_the_whole_cluster_and_afterwards_it_comes_in():
    held, groups, clock = make(3)
    groups.ask("other", place("sampler", 1))
    seen: list[float] = []

    def other_run_ends() -> None:
        seen.append(groups.cpus)
        groups.give_back("other")

    clock.meanwhile = other_run_ends
    held.take(ROLES)
    assert seen == [2], "nothing was held in the pause"
    assert len(clock.pauses) == 1


@given(cpus=st.integers(2, 9), sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)), seed=st.randoms())
def test_two_runs_that_start_at_once_both_come_in_one_after_the_other_or_are_refused_but_never_block(cpus, sizes, seed):
    """They take turns at random moments; the one that got its roles gives them back after a while."""
    clock = Clock()
    groups = FakeGroups(cpus, clock)
    runs = []
    for number, size in enumerate(sizes):
        wanted = {f"sampler-{rank}": place("sampler", 1) for rank in range(size)}
        runs.append((number, wanted))
    done: set[int] = set()

    def start(number: int, wanted: dict, rest: list) -> None:
        held = Reservations(f"{number}/", patience_s=60, groups=groups, pause=clock.pause, now_s=clock)
        clock.meanwhile = lambda: start(*rest.pop()) if rest and seed.random() < 0.5 else None
        try:
            held.take(wanted)
            done.add(number)
        except PlacementError:
            assert len(wanted) > cpus
        held.give_back_all()

    rest = [(number, wanted, []) for number, wanted in runs[1:]]
    start(*runs[0], rest)
    for late in rest:
        start(*late)
    assert done == {number for number, wanted in runs if len(wanted) <= cpus}
    assert groups.cpus == cpus


def test_an_actor_that_reserves_nothing_needs_no_group():
    held, groups, _ = make(1)
    held.take({"scorer-0": place("scorer", 0.0)})
    assert (groups.asked, held.options("scorer-0"), held.nodes("scorer-0")) == ([], {}, frozenset())
    held.renew("scorer-0")
    assert groups.asked == []


def test_a_place_that_stands_is_kept_for_the_next_actor_and_one_whose_node_is_gone_is_taken_anew():
    held, groups, _ = make(2)
    held.take({"sampler-0": place("sampler", 1)})
    held.renew("sampler-0")
    assert len(groups.asked) == 1
    groups.down.add("run@01/sampler-0")
    assert held.nodes("sampler-0") is None
    held.renew("sampler-0")
    assert (len(groups.asked), groups.cpus) == (2, 1)


def test_a_place_that_cannot_be_taken_anew_stays_wanted():
    held, groups, _ = make(1, patience_s=0)
    held.take({"sampler-0": place("sampler", 1)})
    groups.down.add("run@01/sampler-0")
    groups.cpus = -1  # the node's
    with pytest.raises(PlacementError):
        held.renew("sampler-0")
    assert held.nodes("sampler-0") is None, "no actor starts outside a group"
    groups.down.clear()
    groups.cpus = 1
    held.renew("sampler-0")
    assert held.nodes("sampler-0") == {"here"}


def test_bundles_are_what_ray_counts():
    assert bundle_of(Placement("sampler", 1, cpus=0.5, gpus=0.25, threads=4)) == {"CPU": 0.5, "GPU": 0.25}
    assert bundle_of(Placement("sampler", 1, cpus=0.0, gpus=1.0, threads=4)) == {"GPU": 1.0}


# On a live cluster


@pytest.mark.real
@pytest.mark.usefixtures("ray_cluster")
def test_ray_gives_each_actor_its_place_takes_it_back_and_keeps_nothing_of_a_run_that_died():
    prefix = prefix_of("room")
    before = free_cpus()
    held = Reservations(prefix, patience_s=0)
    held.take({"sampler-0": place("sampler", 0.25), "sampler-1": place("sampler", 0.25)})
    assert held.nodes("sampler-1") == {ray.get_runtime_context().get_node_id()}
    actor = Idle.options(num_cpus=0.25, **held.options("sampler-0")).remote()
    assert ray.get(actor.group.remote(), timeout=60) == f"{prefix}sampler-0"
    wait_for(lambda: free_cpus() == before - 0.5)
    ray.kill(actor)
    held.give_back("sampler-0")
    wait_for(lambda: free_cpus() == before - 0.25)
    held.take({"sampler-0": place("sampler", 0.25)})  # its name is free again, too
    with pytest.raises(PlacementError, match=r"no place for 1 of 1 scorer bundle\(s\).*labelled role=nowhere"):
        held.take({"scorer-0": place("scorer", 0.25, labels={"role": "nowhere"})})
    give_back_leftovers(prefix)
    wait_for(lambda: free_cpus() == before)
    assert held.nodes("sampler-0") is None


@ray.remote
class Idle:
    def group(self) -> str:
        return placement_group_table(get_current_placement_group())["name"]


def free_cpus() -> float:
    return round(sum(node.cpus for node in free_nodes()), 4)


def wait_for(condition, *, seconds: float = 20.0) -> None:
    deadline_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)

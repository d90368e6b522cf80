"""Bundles on nodes: what fits, what is missing, and what a refusal says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negalign_ray.actors.cluster import node_of, wait_for_seats
from negalign_ray.actors.packing import Node, Placement, require_seats, require_whole_gpus, seat
from negalign_ray.errors import PlacementError


def ask(
    role: str, num: int, *, cpus: float = 0.0, gpus: float = 0.0, memory_bytes: int = 0, **labels: str
) -> Placement:
    return Placement(role, num, cpus, gpus, threads=1, labels=labels, memory_bytes=memory_bytes)


def node(cpus: float, *gpus: float, name: str = "node", memory_bytes: int | None = None, **labels: str) -> Node:
    return Node(name, cpus, gpus, memory_bytes=memory_bytes, labels=labels)


def test_sums_that_fit_are_refused_when_no_node_holds_a_third_bundle():
    seating = seat([ask("learner", 3, cpus=5)], [node(8), node(8)])  # 15 of 16 CPU
    assert [s.node for s in seating.seats] == [0, 1]
    assert seating.missing == {"learner": 1}


def test_another_order_of_the_roles_is_tried_when_the_largest_first_does_not_fit():
    # Largest first: 4 3 | 3 2 2, and the last 2 is over. But 4 2 2 | 2 3 3 fits.
    places = [ask("learner", 1, cpus=4), ask("sampler", 2, cpus=3), ask("reference", 3, cpus=2)]
    seating = seat(places, [node(8), node(8)])
    assert seating.complete
    assert sorted(s.role for s in seating.on(0)) == ["learner", "reference", "reference"]


def test_what_needs_no_gpu_keeps_off_the_gpu_node_while_it_can():
    places = [ask("sampler", 2, cpus=4), ask("learner", 1, cpus=4, gpus=1)]
    seating = seat(places, [node(8, 1.0), node(8)])
    assert {(s.role, s.node) for s in seating.seats} == {("sampler", 1), ("learner", 0)}


@pytest.mark.parametrize(
    ("gpus", "num", "placed"),
    [
        (0.4, 4, 4),  # two on each device
        (0.6, 3, 2),  # 1.8 of 2 GPUs, but 0.6 does not fit beside 0.6
        (2.0, 1, 1),
        (2.0, 2, 1),
    ],
)
def test_a_share_of_a_gpu_lies_on_one_device(gpus, num, placed):
    seating = seat([ask("sampler", num, gpus=gpus)], [node(8, 1.0, 1.0)])
    assert len(seating.seats) == placed


def test_shares_leave_whole_devices_whole():
    seating = seat([ask("reference", 2, gpus=0.3), ask("learner", 1, gpus=1)], [node(8, 1.0, 1.0)])
    assert seating.complete
    devices = {s.role: s.gpus for s in seating.seats}
    assert set(devices["learner"]).isdisjoint(devices["reference"])


def test_labelled_bundles_sit_on_nodes_with_the_label_alone():
    seating = seat([ask("sampler", 2, cpus=1, pool="fast")], [node(8), node(1, pool="fast")])
    assert ([s.node for s in seating.seats], seating.missing) == ([1], {"sampler": 1})
    with pytest.raises(PlacementError, match="on nodes labelled pool=fast"):
        require_seats([ask("sampler", 2, cpus=1, pool="fast")], [node(8), node(1, pool="fast")])


def test_memory_is_counted_where_both_sides_know_it():
    place = ask("learner", 2, cpus=1, memory_bytes=6)
    assert seat([place], [node(8, memory_bytes=10)]).missing == {"learner": 1}
    assert seat([place], [node(8)]).complete


def test_ten_tenths_of_a_core_fit_on_one():
    assert seat([ask("scorer", 10, cpus=0.1)], [node(1.0)]).complete


def test_a_refusal_names_the_missing_bundles_what_is_there_and_the_remedy():
    places = [ask("sampler", 4, cpus=8, gpus=1), ask("learner", 1, cpus=2)]
    with pytest.raises(PlacementError) as caught:
        require_seats(places, [node(8, 1.0), node(4)])
    assert str(caught.value) == (
        "no place for 3 of 4 sampler bundle(s) of 8 CPU + 1 GPU each. The cluster has 2 nodes with 12 CPU + 1 GPU, the "
        "largest with 8 CPU + 1 GPU; what fits: 1 learner(s), 1 sampler(s). Set samplers.num=1, lower "
        "samplers.cpus or samplers.gpus, or add room for 3 more (nodes with at least 8 CPU + 1 GPU). Roles that take "
        "turns may share a core (fractions of cpus)."
    )


def test_a_bundle_that_no_node_could_hold_says_so():
    with pytest.raises(PlacementError, match=r"nodes with at least 16 CPU\) \(no node holds even one\)"):
        require_seats([ask("learner", 1, cpus=16)], [node(8), node(8)])


def test_the_role_that_asks_for_most_is_the_one_that_misses_places():
    seating = seat([ask("sampler", 50, cpus=0.9), ask("learner", 1, cpus=0.9), ask("scorer", 1, cpus=0.1)], [node(2)])
    assert seating.missing == {"sampler": 49}  # 2 - 0.9 - 0.1 leaves one


def test_one_and_a_half_gpus_are_refused_before_ray_does():
    with pytest.raises(PlacementError, match=r"samplers\.gpus=1\.5: .* use 1 or 2"):
        require_whole_gpus([ask("sampler", 1, gpus=1.5)])
    require_whole_gpus([ask("sampler", 1, gpus=0.5), ask("learner", 1, gpus=2)])


bundles = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 8), st.sampled_from([0, 0.25, 0.5, 1])), max_size=4)


@given(bundles, st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=1, max_size=4))
def test_no_seating_ever_gives_away_more_than_there_is(asked, there):
    places = [ask(f"role {i}", num, cpus=cpus, gpus=gpus) for i, (num, cpus, gpus) in enumerate(asked)]
    nodes = [node(cpus, *[1.0] * gpus) for cpus, gpus in there]
    seating = seat(places, nodes)
    by_role = {place.role: place for place in places}
    for index, holder in enumerate(nodes):
        here = seating.on(index)
        assert sum(by_role[s.role].cpus for s in here) <= holder.cpus
        for device in range(len(holder.gpus)):
            assert sum(min(1, by_role[s.role].gpus) for s in here if device in s.gpus) <= 1
    assert len(seating.seats) + sum(seating.missing.values()) == sum(place.num for place in places)


# On a live cluster


def test_ray_s_free_gpus_are_read_as_whole_devices_and_a_rest():
    found = node_of("10.0.0.1", {"CPU": 6.5, "GPU": 2.25, "memory": 1024.0}, {"pool": "fast"})
    assert found == Node("10.0.0.1", 6.5, (1.0, 1.0, 0.25), memory_bytes=1024, labels={"pool": "fast"})


def test_a_busy_cluster_is_waited_for_and_the_run_goes_on_when_there_is_room():
    free, pauses = iter([[node(1)], [node(1)], [node(4)]]), []
    wait_for_seats([ask("sampler", 1, cpus=2)], lambda: next(free), patience_s=5, pause=pauses.append)
    assert pauses == [1.0, 1.0]


def test_a_cluster_that_stays_busy_is_refused_after_the_deadline_with_what_is_free():
    pauses = []
    with pytest.raises(PlacementError, match=r"What other work leaves free.*1 CPU;.*deadlines\.place_s=3 s") as caught:
        wait_for_seats([ask("sampler", 1, cpus=2)], lambda: [node(1)], patience_s=3, pause=pauses.append)
    assert sum(pauses) == 3
    assert "1 of 1 sampler bundle(s) of 2 CPU each" in str(caught.value)

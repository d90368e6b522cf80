"""Labels: which nodes a role asks for, as Ray takes it and as a plan counts it."""

import pytest
from ray._common.ray_option_utils import validate_actor_options

from negalign_ray.actors.packing import Node, Placement, require_seats
from negalign_ray.actors.processes import actor_options
from negalign_ray.config import SamplersConfig
from negalign_ray.errors import ConfigError, PlacementError
from negalign_ray.settings import load_config

SAMPLER, LEARNER = {"role": "sampler"}, {"role": "learner"}


def place(role: str, num: int, *, gpus: float = 0.0, labels: dict[str, str]) -> Placement:
    return Placement(role, num, cpus=1.0, gpus=gpus, threads=1, labels=labels)


def test_a_role_with_labels_counts_only_the_nodes_that_carry_them():
    places = [place("sampler", 2, labels=SAMPLER), place("learner", 1, labels=LEARNER)]
    zone = {"zone": "a"}
    require_seats(places, [Node("a", 2.0, labels=SAMPLER | zone), Node("b", 1.0, labels=LEARNER)])
    others = [Node("a", 1.0, labels=SAMPLER), Node("b", 9.0, labels=LEARNER), Node("c", 9.0)]
    with pytest.raises(PlacementError) as caught:
        require_seats(places, others)
    assert str(caught.value) == (
        "no place for 1 of 2 sampler bundle(s) of 1 CPU each on nodes labelled role=sampler. The cluster has 1 node(s) "
        "with 1 CPU labelled so; what fits: 1 learner(s), 1 sampler(s). Set samplers.num=1, lower samplers.cpus, or "
        "add room for 1 more (nodes with at least 1 CPU, started with `--labels=role=sampler`). Roles that take turns "
        "may share a core (fractions of cpus)."
    )


def test_roles_of_one_group_are_added_up():
    places = [place("sampler", 2, gpus=0.8, labels=SAMPLER), place("reference", 1, gpus=0.5, labels=SAMPLER)]
    with pytest.raises(PlacementError, match=r"1 of 2 sampler bundle\(s\) of 1 CPU \+ 0\.8 GPU"):
        require_seats(places, [Node(name, 4.0, (1.0,), labels=SAMPLER) for name in ("a", "b")])


def test_a_group_without_a_node_is_named():
    with pytest.raises(PlacementError, match=r"on nodes labelled role=learner,zone=a\."):
        require_seats([place("learner", 1, labels=LEARNER | {"zone": "a"})], [Node("a", 8.0, labels=LEARNER)])


def test_labels_become_the_selector_of_the_actor_and_ray_accepts_it():
    with_labels = actor_options(SamplersConfig(labels=SAMPLER), name="s")
    assert with_labels["label_selector"] == {"role": "sampler"}
    without = actor_options(SamplersConfig(), name="s")
    assert without["label_selector"] is None
    for options in (with_labels, without):
        validate_actor_options(options, in_options=True)


@pytest.mark.parametrize("labels", ["{role: 'in(a, b)'}", "{-role: a}", "{role: ''}"])
def test_labels_that_ray_would_not_take_are_refused_as_settings(labels):
    with pytest.raises(ConfigError, match=r"samplers\.labels.*should match pattern"):
        load_config(overrides=[f"samplers.labels={labels}"])


def test_labels_of_ray_itself_can_be_asked_for():
    config = load_config(overrides=["learners.labels={ray.io/accelerator-type: H100}"])
    assert config.learners.labels == {"ray.io/accelerator-type": "H100"}


def test_labels_that_are_no_pairs_are_refused_with_the_form():
    with pytest.raises(ConfigError, match=r"samplers\.labels=role: .*write pairs: \{name: value\}"):
        load_config(overrides=["samplers.labels=role"])

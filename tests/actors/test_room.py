"""A run that the cluster cannot hold is refused at once, group of labelled nodes by group."""

import pytest
from ray._common.ray_option_utils import validate_actor_options

from negalign_ray.actors.cluster import Node, Placement, check_room
from negalign_ray.actors.processes import actor_options
from negalign_ray.config import SamplersConfig
from negalign_ray.errors import ConfigError, PlacementError
from negalign_ray.settings import load_config

ANYWHERE: dict[str, str] = {}
SAMPLER, LEARNER = {"role": "sampler"}, {"role": "learner"}


def place(role: str, num: int, *, cpus: float = 1.0, gpus: float = 0.0, labels: dict[str, str] = ANYWHERE) -> Placement:
    return Placement(role, num, cpus, gpus, threads=1, labels=labels)


def test_without_labels_only_the_sum_over_all_nodes_counts():
    places = [place("sampler", 2, cpus=0.9), place("learner", 1, cpus=0.2)]
    check_room(places, [Node({"CPU": 1.0}), Node({"CPU": 1.0})])  # 2 * 0.9 + 0.2 = 2.0 of 2
    with pytest.raises(PlacementError, match=r"asks for 2 CPU \(samplers 1\.8, learners 0\.2\) and the cluster has 1;"):
        check_room(places, [Node({"CPU": 1.0})])


def test_a_role_with_labels_counts_only_the_nodes_that_carry_them():
    places = [place("sampler", 2, labels=SAMPLER), place("learner", 1, labels=LEARNER)]
    zone = {"zone": "a"}
    check_room(places, [Node({"CPU": 2.0}, SAMPLER | zone), Node({"CPU": 1.0}, LEARNER)])
    with pytest.raises(PlacementError) as caught:
        check_room(places, [Node({"CPU": 1.0}, SAMPLER), Node({"CPU": 9.0}, LEARNER), Node({"CPU": 9.0})])
    assert str(caught.value) == (
        "the run asks for 2 CPU (samplers 2) and the 1 node(s) with the labels role=sampler have 1; lower <role>.cpus "
        "or <role>.num, or add nodes (ray start --labels=role=sampler). Roles that take turns may share a core."
    )


def test_roles_of_one_group_are_added_up():
    places = [place("sampler", 2, gpus=0.8, labels=SAMPLER), place("reference", 1, gpus=0.5, labels=SAMPLER)]
    with pytest.raises(PlacementError, match=r"2\.1 GPU \(samplers 1\.6, references 0\.5\).* 2 node\(s\) .* have 2;"):
        check_room(places, [Node({"CPU": 4.0, "GPU": 1.0}, SAMPLER)] * 2)


def test_a_group_without_a_node_is_named():
    with pytest.raises(PlacementError, match=r"the 0 node\(s\) with the labels role=learner,zone=a have 0"):
        check_room([place("learner", 1, labels=LEARNER | {"zone": "a"})], [Node({"CPU": 8.0}, LEARNER)])


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

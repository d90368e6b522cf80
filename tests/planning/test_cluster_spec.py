"""Clusters in a few words."""

import pytest

from negalign_ray.actors.packing import Node
from negalign_ray.errors import ConfigError
from negalign_ray.planning.cluster_spec import parse_cluster, this_machine


def test_groups_of_nodes_that_are_alike_are_added_up():
    nodes = parse_cluster("1x(16cpu, 64gb) + 2x(8cpu,32GiB,4gpu:80gb,pool=Fast)")
    assert nodes[0] == Node("node-0", 16.0, (), memory_bytes=64 * 10**9)
    assert [node.name for node in nodes] == ["node-0", "node-1", "node-2"]
    assert nodes[2] == Node(
        "node-2", 8.0, (1.0,) * 4, memory_bytes=32 * 2**30, gpu_bytes=80 * 10**9, labels={"pool": "Fast"}
    )


def test_one_node_needs_no_number():
    assert parse_cluster("(2.5cpu)") == (Node("node-0", 2.5),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8cpu", r"'8cpu' is not N x"),
        ("2x(8cores)", r"'8cores' is no amount of cpu, gb or gpu"),
        ("2x(8cpu,1.5gpu)", r"'1\.5gpu' is no amount"),
        ("2x(8cpu:3gb)", r"'8cpu:3gb' is no amount"),
        ("2x(64gb)", r"\(64gb\) names no CPUs"),
        ("0x(8cpu)", r"0 nodes; give 1 to 10000"),
        ("20000x(8cpu)", r"20000 nodes"),
        ("", r"'' is not N x"),
    ],
)
def test_what_cannot_be_read_is_quoted_with_an_example(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_cluster(text)


def test_this_machine_has_cores():
    (node,) = this_machine()
    assert node.cpus > 0

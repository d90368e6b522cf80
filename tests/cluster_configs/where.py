"""Joins the cluster of RAY_ADDRESS, starts an actor for each role as a run does, and prints the role of its node."""

import json
from pathlib import Path

import ray

from negalign_ray.actors.cluster import start_ray, stop_ray
from negalign_ray.actors.processes import actor_options, start_actor
from negalign_ray.settings import load_config


@ray.remote
class Somewhere:
    def node_id(self) -> str:
        return ray.get_runtime_context().get_node_id()


def main() -> None:
    config = load_config(preset="quickstart", file=Path("cluster_configs/roles.yaml"))
    start_ray()
    labels = {node["NodeID"]: node["Labels"] for node in ray.nodes() if node["Alive"]}
    actors = {
        role: start_actor(Somewhere, actor_options(section, name=role))
        for role, section in (("sampler", config.samplers), ("learner", config.learners))
    }
    found = {role: labels[ray.get(actor.node_id.remote(), timeout=60)].get("role") for role, actor in actors.items()}
    print(json.dumps({"num_nodes": len(labels), "roles": found}))
    stop_ray()


if __name__ == "__main__":
    main()

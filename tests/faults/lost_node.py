"""A run on three Ray nodes of this machine, one of which is lost; in a process of its own.

    python -m tests.faults.lost_node sampler-0 CONFIG     the node of sampler 0, of a scorer or of a reference
    python -m tests.faults.lost_node learner-1 CONFIG     the node of learner rank 1

The last line is what became of the run, as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from negalign_ray.actors.courier import free_port
from negalign_ray.actors.resume import find_checkpoint
from negalign_ray.actors.run import resume, train
from negalign_ray.actors.stall import find_processes
from negalign_ray.config import Config
from negalign_ray.errors import RoleError
from negalign_ray.settings import load_config
from tests.faults.harness import Scene, events, sabotage

STORE_BYTES = 128 * 1024**2
DOING = {"sampler": "sample call", "learner": "trains on step"}


def start_nodes() -> tuple[Cluster, dict[str, Any]]:
    """The driver's node, and two for the roles under test; by node id."""
    dashboard = {"include_dashboard": True, "dashboard_port": free_port()}  # the usual one may be another cluster's
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": STORE_BYTES, **dashboard}
    )
    ray.init(address=cluster.address, log_to_driver=False)  # while there is no other node that it could be on
    others = [cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES, labels={"role": "away"}) for _ in range(2)]
    return cluster, {node.node_id: node for node in others}


def lose_node_of(name: str, config: Config, cluster: Cluster, nodes: dict[str, Any]):
    role, _, rank = name.rpartition("-")

    def strike(scene: Scene) -> None:
        scene.wait_for_step(2)
        scene.wait_while_it(DOING[role], role=role, rank=int(rank), for_s=0.0)
        where = next(each.node_id for each in find_processes(config.run_dir) if each.name == name)
        cluster.remove_node(nodes[where], allow_graceful=False)

    return strike


def main() -> None:
    name, file = sys.argv[1:]
    config = load_config(file=Path(file))
    cluster, nodes = start_nodes()
    told: dict[str, Any] = {}
    try:
        with sabotage(config, lose_node_of(name, config, cluster, nodes)) as saboteur:
            told["summary"] = train(config)
        told["seconds"] = saboteur.seconds_to_next_step
    except RoleError as error:
        told |= {"role": error.role, "error": str(error), "notes": error.__notes__}
        told["seconds"] = saboteur.seconds_since()
        again = find_checkpoint(config.run_dir)
        told |= {"resumed_from": again.checkpoint.step, "summary": resume(again)}
    told["replaced"] = sorted(row["role"] for row in events(config, "replace"))
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps(told))


if __name__ == "__main__":
    main()

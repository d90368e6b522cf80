"""What the files of cluster_configs/ and docker/ say, read the way their programs read them."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml
from ray._private.label_utils import parse_node_labels_string
from ray.scripts.scripts import start

from negalign_ray.actors.packing import Node, Placement, require_seats
from negalign_ray.settings import load_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS, DOCKER = ROOT / "cluster_configs", ROOT / "docker"
ROLES = ("sampler", "learner")


def tool(name: str) -> str | None:
    """A program that pip put beside this Python, or one of the system."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def ray_start(arguments: str) -> dict[str, Any]:
    """What `ray start ARGUMENTS` understands, without starting anything; raises on options that it does not have."""
    options = start.make_context("start", shlex.split(arguments)).params
    return options | {"labels": parse_node_labels_string(options["labels"])}


def require_room_for_a_run(nodes: list[Node], *, roles: str, num_samplers: int, num_learners: int) -> None:
    """PlacementError unless d2o, with its roles sent to labels by the file `roles`, fits onto the nodes."""
    counts = [f"samplers.num={num_samplers}", f"learners.num={num_learners}"]
    config = load_config(preset="d2o", file=CONFIGS / roles, overrides=counts)
    sections = {"sampler": config.samplers, "learner": config.learners, "reference": config.references}
    require_seats([Placement.of(role, section.num, section) for role, section in sections.items()], nodes)

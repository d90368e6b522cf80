"""`negalign-ray plan`: which cluster is meant, and the report on it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from negalign_ray.actors.cluster import live_nodes, shared_cluster
from negalign_ray.actors.packing import Node
from negalign_ray.config import Config
from negalign_ray.planning.cluster_spec import parse_cluster, this_machine
from negalign_ray.planning.render import render
from negalign_ray.planning.report import THIS_MACHINE, make_report


def show_plan(
    settings: Config, *, cluster: str | None, bench: Sequence[Path], simulate: bool, out: Console
) -> dict[str, Any]:
    """Prints the report and returns its figures."""
    nodes, where = _nodes(cluster)
    report = make_report(settings, nodes=nodes, where=where, bench=bench, simulated=simulate)
    out.print(render(report), highlight=False)
    return report.to_json()


def _nodes(cluster: str | None) -> tuple[Sequence[Node], str]:
    if cluster is not None:
        return parse_cluster(cluster), "the planned cluster"
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return this_machine(), THIS_MACHINE
    with shared_cluster():
        return live_nodes(), f"the cluster at {address}"

"""Everything `negalign-ray plan` says: seats, memory, warnings; with figures of a bench, the time of a step."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from negalign_ray.actors.cluster import evaluation_placements, placements
from negalign_ray.actors.dry_run import batch_lines, evaluation_warnings
from negalign_ray.actors.memory import Memory, ModelSize, role_memory
from negalign_ray.actors.packing import Node, Placement, Seating, explain_missing, require_whole_gpus, seat
from negalign_ray.actors.plan import Plan, make_plan
from negalign_ray.config import Config
from negalign_ray.errors import ConfigError
from negalign_ray.planning.bench_file import read_bench
from negalign_ray.planning.cautions import (
    device_warnings,
    kv_cache_warnings,
    memory_warnings,
    object_store_warnings,
    online_warnings,
)
from negalign_ray.planning.costs import Costs, costs_of
from negalign_ray.planning.estimate import Estimate, estimate
from negalign_ray.planning.simulate import Prediction, simulate
from negalign_ray.planning.workload import Workload


@dataclass(frozen=True)
class Report:
    plan: Plan
    where: str  # "this machine", "the planned cluster", "the cluster"
    nodes: tuple[Node, ...]
    placements: tuple[Placement, ...]
    memory: dict[str, Memory]  # one actor of each role
    seating: Seating
    missing: str | None  # why the run has no place; None = it has
    warnings: tuple[str, ...]
    costs: Costs | None = None
    estimate: Estimate | None = None
    prediction: Prediction | None = None

    def to_json(self) -> dict[str, Any]:
        nodes = []
        for index, node in enumerate(self.nodes):
            here = [{"role": s.role, "rank": s.rank, "gpus": list(s.gpus)} for s in self.seating.on(index)]
            nodes.append({**asdict(node), "actors": here})
        return {
            "where": self.where,
            "placements": [asdict(place) for place in self.placements],
            "nodes": nodes,
            "missing": self.missing,
            "memory_bytes": {role: asdict(memory) | {"total": memory.total} for role, memory in self.memory.items()},
            "batch": batch_lines(self.plan),
            "warnings": list(self.warnings),
            "assumptions": list(self.costs.notes) if self.costs else [],
            "estimate": asdict(self.estimate) if self.estimate else None,
            "prediction": asdict(self.prediction) if self.prediction else None,
        }


def make_report(
    config: Config, *, nodes: Sequence[Node], where: str, bench: Sequence[Path] = (), simulated: bool = False
) -> Report:
    """Starts nothing. Raises what `make_plan` raises, and ConfigError for a simulation without figures of a bench."""
    if simulated and not bench:
        raise ConfigError("--simulate needs measured seconds: give --bench FILE (`negalign-ray bench --json FILE`).")
    measured = read_bench(bench) if bench else None
    plan = make_plan(config)
    report = _seated(plan, tuple(nodes), where)
    if measured is None or report.missing:
        return report
    costs = costs_of(plan, measured)
    work = Workload.of(plan, answer_frac=costs.answer_frac)
    seats: Any = {"seating": report.seating, "nodes": report.nodes}
    return replace(
        report,
        costs=costs,
        estimate=estimate(plan, costs, work, **seats),
        prediction=simulate(plan, costs, work, **seats) if simulated else None,
    )


def _seated(plan: Plan, nodes: tuple[Node, ...], where: str) -> Report:
    places = placements(plan)
    require_whole_gpus(places)
    device_bytes = min((node.gpu_bytes for node in nodes if node.gpu_bytes), default=None)
    memory = role_memory(plan, gpu_bytes=device_bytes)
    seating = _seat(places, nodes, memory)
    missing = None if seating.complete else explain_missing(seating, places, nodes, where=where)
    if missing is None:
        missing = _missing_after_training(plan, nodes, where)
    present = {place.role for place in places}
    return Report(
        plan=plan,
        where=where,
        nodes=nodes,
        placements=tuple(places),
        memory={role: needed for role, needed in memory.items() if role in present},
        seating=seating,
        missing=missing,
        warnings=(
            *memory_warnings(places, memory, seating, nodes),
            *kv_cache_warnings(plan, ModelSize.of(plan.model_path), memory["sampler"]),
            *device_warnings(plan),
            *evaluation_warnings(plan),
            *(object_store_warnings(memory["sampler"]) if where == THIS_MACHINE else ()),
            *online_warnings(plan),
        ),
    )


THIS_MACHINE = "this machine"


def _seat(places: Sequence[Placement], nodes: Sequence[Node], memory: dict[str, Memory]) -> Seating:
    """With an eye on memory where that is possible; Ray places by CPUs and GPUs alone."""
    counted = [replace(place, memory_bytes=memory[place.role].host(gpus=place.gpus)) for place in places]
    seating = seat(counted, nodes)
    return seating if seating.complete else seat(places, nodes)


def _missing_after_training(plan: Plan, nodes: Sequence[Node], where: str) -> str | None:
    later = evaluation_placements(plan)
    seating = seat(later, nodes)
    if seating.complete:
        return None
    return f"The evaluation after training: {explain_missing(seating, later, nodes, where=where)}"

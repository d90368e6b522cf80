"""A report for the terminal. Nodes that look alike share a row, so that a thousand of them fit on a page."""

from collections import Counter
from collections.abc import Iterator
from itertools import groupby

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from negalign_ray.actors.dry_run import batch_lines, roles_table
from negalign_ray.actors.memory import GIB
from negalign_ray.planning.estimate import ROLE_OF_STAGE, Estimate
from negalign_ray.planning.report import Report
from negalign_ray.planning.simulate import Prediction

PARTS = ("weights", "gradients", "optimizer", "activations", "kv_cache", "logits", "process")


def render(report: Report) -> RenderableType:
    parts: list[RenderableType] = [
        roles_table(report.plan),
        Text(),
        _memory_table(report),
        Text(),
        _nodes_table(report),
    ]
    parts += [Text(), *map(Text, batch_lines(report.plan))]
    parts += [Text(f"warning: {warning}", style="yellow") for warning in report.warnings]
    if report.estimate is not None:
        parts += [Text(), _stages_table(report.estimate), *map(Text, _estimate_lines(report))]
    if report.prediction is not None:
        parts += [Text(), _idle_table(report.prediction), *map(Text, _prediction_lines(report.prediction))]
    if report.costs is not None and report.costs.notes:
        parts += [Text(), *(Text(f"assumed: {note}") for note in report.costs.notes)]
    return Group(*parts)


def _memory_table(report: Report) -> Table:
    table = Table(title="memory of one actor, GiB (an estimate from below)", title_justify="left")
    table.add_column("")
    for role in report.memory:
        table.add_column(role, justify="right")
    for part in PARTS:
        row = [getattr(memory, part) for memory in report.memory.values()]
        if any(row):
            table.add_row(part.replace("_", " "), *map(_gib, row))
    table.add_section()
    table.add_row("all", *(_gib(memory.total) for memory in report.memory.values()))
    return table


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f}" if num_bytes else "-"


def _nodes_table(report: Report) -> Table:
    title = f"seats on {report.where} (one way; Ray may choose another)"
    table = Table(title=title, title_justify="left")
    for heading in ("node", "actors", "CPUs", "GPUs", "memory, GiB"):
        table.add_column(heading, justify="left" if heading in ("node", "actors") else "right")
    for names, cells in _rows(report):
        table.add_row(names[0] if len(names) == 1 else f"{names[0]} .. {names[-1]} ({len(names)})", *cells)
    return table


def _rows(report: Report) -> Iterator[tuple[list[str], tuple[str, ...]]]:
    cells = [_node_cells(report, index) for index in range(len(report.nodes))]
    for alike, indices in groupby(range(len(cells)), key=lambda index: cells[index]):
        yield [report.nodes[index].name for index in indices], alike


def _node_cells(report: Report, index: int) -> tuple[str, ...]:
    node, here = report.nodes[index], report.seating.on(index)
    asked = {place.role: place for place in report.placements}
    num = Counter(seat.role for seat in here)
    actors = ", ".join(f"{count} {role}{'s' if count > 1 else ''}" for role, count in num.items())
    cpus = sum(asked[seat.role].cpus for seat in here)
    gpus = sum(asked[seat.role].gpus for seat in here)
    memory = sum(report.memory[seat.role].host(gpus=asked[seat.role].gpus) for seat in here)
    there = "?" if node.memory_bytes is None else f"{node.memory_bytes / GIB:.0f}"
    return (
        actors or "-",
        f"{cpus:g} of {node.cpus:g}",
        f"{gpus:g} of {sum(node.gpus):g}" if node.gpus else "-",
        f"{memory / GIB:.1f} of {there}",
    )


def _stages_table(found: Estimate) -> Table:
    table = Table(title=f"expected: {found.step_s:.2f} s a step", title_justify="left")
    for heading in ("stage", "role", "seconds a step"):
        table.add_column(heading, justify="right" if heading == "seconds a step" else "left")
    for stage, seconds in found.stages_s.items():
        table.add_row(stage, ROLE_OF_STAGE[stage], f"{seconds:.2f}")
    return table


def _estimate_lines(report: Report) -> list[str]:
    found, config = report.estimate, report.plan.config
    assert found is not None
    how = "overlap" if found.depth > 1 else "take turns"
    lines = [
        f"bottleneck: the {found.bottleneck}",
        f"sides: sampling {found.sampling_side_s:.2f} s, training {found.learning_side_s:.2f} s a step; they {how}; "
        f"the cores of {found.busiest_node or 'the nodes'} are busy for {found.cores_s:.2f} s of it",
    ]
    if found.balanced_samplers is not None:
        asynchronous = "" if found.depth > 1 else " with sampling.staleness=1"
        cores = "" if found.cores_s <= max(found.sampling_side_s, found.learning_side_s) else ", given more cores"
        lines.append(
            f"balance: {found.balanced_samplers} sampler(s) to {config.learners.num} learner rank(s) keep the learners "
            f"busy{asynchronous}{cores} (now {config.samplers.num})"
        )
    elif found.balance_limit:
        lines.append(f"balance: no number of samplers keeps the learners busy; the limit is the {found.balance_limit}")
    return lines


def _idle_table(found: Prediction) -> Table:
    table = Table(title=f"simulated: {found.step_s:.2f} s a step", title_justify="left")
    table.add_column("role")
    table.add_column("idle", justify="right", min_width=14)
    for role, idle in found.idle_frac.items():
        table.add_row(role, f"{idle:.0%}")
    return table


def _prediction_lines(found: Prediction) -> list[str]:
    return [
        f"over {found.num_steps} steps: {found.groups_per_s:.3g} groups/s, {found.sampled_tokens_per_s:,.0f} new "
        f"tokens/s, samples {found.staleness_steps:.2g} step(s) old, at most {found.max_buffer_groups} groups in the "
        f"buffer, {found.dropped_stale} orders dropped as stale",
        f"the conductor's loop can do more than {found.loop_groups_per_s:.0f} groups/s: so many were simulated on one "
        "core (Ray's calls left out)",
    ]

"""How `negalign-ray status` shows a run."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from negalign_ray.actors.overview import Overview
from negalign_ray.live.draw import clock


def overview_table(overview: Overview) -> RenderableType:
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(overview):
        facts.add_row(Text(name, style="bold"), Text(value))
    roles = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("role", "weights", "does", "for"):
        roles.add_column(heading, justify="right" if heading == "for" else "left")
    for role in overview.roles:
        version = "" if role.weight_version is None else f"v{role.weight_version}"
        seconds = "" if role.for_s is None else clock(role.for_s)
        roles.add_row(f"{role.role}[{role.rank}]", version, role.doing, seconds)
    errors = [Text("last errors", style="bold")] if overview.errors else []
    return Group(facts, Text(), roles, *([Text(), *errors, *map(Text, overview.errors)] if errors else []))


def _facts(overview: Overview) -> Iterator[tuple[str, str]]:
    pace, queues = overview.pace, overview.queues
    yield "run", f"{overview.run}  ({overview.run_dir})"
    yield "phase", f"{overview.phase}, step {overview.step}/{overview.num_steps}"
    yield "versions", f"learners {overview.step}, samplers {overview.sampler_version}"
    yield "groups", f"{queues.under_way} under way, {queues.ready} ready, room for {queues.capacity}"
    rates = [
        ("groups/s", pace.groups_per_s, "{:.2f}"),
        ("sampled tokens/s", pace.sampled_tokens_per_s, "{:.0f}"),
        ("trained tokens/s", pace.trained_tokens_per_s, "{:.0f}"),
    ]
    measured = [f"{style.format(value)} {unit}" for unit, value, style in rates if value is not None]
    yield "rates", ", ".join(measured) or "not known before the second step"
    if pace.eta_s is not None:
        yield "ETA", clock(pace.eta_s)

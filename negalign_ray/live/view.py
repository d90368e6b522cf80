"""Facts as a frame of the terminal.

narrow: header, roles, loss, curves, guards, events     wide: header, then roles, guards, events | loss, curves
"""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from negalign_ray.events import Event, EventKind
from negalign_ray.live.blocks import EDGE, Block, cells, fit, panel
from negalign_ray.live.curves import Curve
from negalign_ray.live.draw import bar, chart, clock, shortened, spark
from negalign_ray.live.facts import RoleFacts, RunFacts
from negalign_ray.loops.guards import Reading

WIDE = 116  # columns from which on blocks stand side by side
MAX_ACTORS = 9  # that have a line each; more are told role by role
CHART_LINES, CHART_LABEL = 6, 8
NEAR, FAR = 0.8, 0.5  # of a guard's limit
ROLE_STYLES = {"sampler": "cyan", "scorer": "yellow", "reference": "magenta", "guide": "blue", "learner": "green"}
SECTION_STYLES = {
    "loss": "bright_cyan",
    "log-ratios": "cyan",
    "log-probs": "blue",
    "rewards": "yellow",
    "evaluation": "green",
    "health": "magenta",
}
PHASE_MARKS = {"finished": ("✓", "bold green"), "failed": ("✗", "bold red"), "cut short": ("✗", "bold yellow")}
EVENT_MARKS = {
    EventKind.FAULT: ("✗", "red"),
    EventKind.REPLACE: ("↻", "yellow"),
    EventKind.SCALE: ("↕", "cyan"),
    EventKind.GUARD: ("▲", "red"),
    EventKind.ROLLBACK: ("↶", "yellow"),
    EventKind.CHECKPOINT: ("✓", "green"),
    EventKind.RESUME: ("▸", "cyan"),
    EventKind.STALL: ("■", "red"),
    EventKind.FAILED: ("✗", "bold red"),
}

Make = Callable[[RunFacts, int], Block]  # of a given width


def frame(facts: RunFacts, *, width: int, height: int | None = None) -> RenderableType:
    """In at most `height` lines; None = as many as there are."""
    head = header(facts, width)
    rest = None if height is None else max(0, height - head.height)
    sides: list[list[Make]]
    sides = [[roles, loss, curves, guards, events]] if width < WIDE else [[roles, guards, events], [loss, curves]]
    table = Table.grid()
    table.add_row(*(_column(facts, side, width // len(sides), rest) for side in sides))
    return Group(panel(head, width), table)


def _column(facts: RunFacts, side: list[Make], width: int, height: int | None) -> RenderableType:
    """On a low terminal the loss is one curve among others, and if need be every role is one line."""
    no_chart = [WITH_LOSS if make is curves else make for make in side if make is not loss]
    together = [TOGETHER if make is roles else make for make in no_chart]
    for makes in (side, no_chart, together):
        blocks = [make(facts, width) for make in makes]
        fitted = fit(blocks, height)
        if all(block in fitted for block in blocks if block.is_vital and block.lines):
            break
    return Group(*(panel(block, width) for block in fitted))


# -- header ----------------------------------------------------------------------------------------------------


def header(facts: RunFacts, width: int) -> Block:
    lines = [_progress(facts, width - EDGE), _speed(facts)]
    lines += [Text(facts.note, style="yellow")] if facts.note else []
    return Block(facts.name, tuple(lines), footer=f"{facts.method} · {facts.model}")


def _progress(facts: RunFacts, width: int) -> Text:
    mark, style = PHASE_MARKS.get(facts.phase, ("■", "bold yellow") if facts.is_over else ("▶", "bold green"))
    share = facts.step / facts.num_steps if facts.num_steps else 0.0
    line = Text.assemble((f"{mark} {facts.phase}", style), f"   step {facts.step}/{facts.num_steps}   ")
    tail = Text(f"  {share:.0%}")
    if facts.time_s is not None:
        tail.append(f"   {clock(facts.time_s)}", style="bold")
    if facts.pace.eta_s and not facts.is_over:
        tail.append("   ETA ", style="dim").append(clock(facts.pace.eta_s), style="bold")
    done, left = bar(share, max(4, width - line.cell_len - tail.cell_len))
    return line.append(done, style="green").append(left, style="bright_black").append_text(tail)


def _speed(facts: RunFacts) -> Text:
    """ "4 ready, 2 under way of 6 groups · 0.23 groups/s" """
    parts = []
    if facts.queue is not None:
        queue = facts.queue
        parts.append(f"{queue.ready} ready, {queue.under_way} under way of {queue.capacity} groups")
    if facts.pace.groups_per_s is not None:
        parts.append(f"{facts.pace.groups_per_s:.3g} groups/s")
    return Text(" · ".join(parts) or "no step is finished yet", style="" if parts else "dim")


# -- roles -----------------------------------------------------------------------------------------------------


def roles(facts: RunFacts, width: int, *, together: bool = False) -> Block:
    shown = list(facts.roles)
    if together or len(shown) > MAX_ACTORS:
        shown = [_together(list(actors)) for _, actors in groupby(shown, key=lambda each: each.role)]
    rates = {"sampler": facts.pace.sampled_tokens_per_s, "learner": facts.pace.trained_tokens_per_s}
    lines = tuple(_role(each, rates.pop(each.role, None), width - EDGE) for each in shown)  # the first of a role has it
    return Block("roles", lines, priority=3, keeps=min(len(lines), 4), is_vital=True, footer="share of time idle")


def _role(facts: RoleFacts, tokens_per_s: float | None, width: int) -> Text:
    style = ROLE_STYLES.get(facts.role, "")
    who = facts.role if facts.rank is None else f"{facts.role} {facts.rank}"
    who += f" ×{facts.num}" if facts.num > 1 else ""
    version = "" if facts.weight_version is None else f"v{facts.weight_version}"
    rate = "" if tokens_per_s is None else f"{shortened(tokens_per_s)} tok/s"
    for_s = "" if facts.for_s is None else f" {clock(facts.for_s)}"
    doing_width = max(8, width - 47)
    doing = Text(facts.doing)
    doing.truncate(doing_width - len(for_s), overflow="ellipsis")
    line = cells(
        (who, 13, style),
        (version, 6, "dim"),
        (f"{doing}{for_s}", doing_width, "" if facts.works else "dim"),
        (rate, -11, ""),
        ("", 0, ""),
    )
    if facts.idle_frac is not None:
        idle, busy = bar(facts.idle_frac, 8)
        line.append(idle, style=style).append(busy, style="bright_black").append(f" {facts.idle_frac:4.0%}")
    return line


def _together(actors: list[RoleFacts]) -> RoleFacts:
    """One line for all actors of a role."""
    if len(actors) == 1:
        return actors[0]
    counts = Counter("at work" if actor.works else "idle" for actor in actors)
    known = [actor.idle_frac for actor in actors if actor.idle_frac is not None]
    versions = [actor.weight_version for actor in actors if actor.weight_version is not None]
    return RoleFacts(
        actors[0].role,
        None,
        doing=", ".join(f"{num} {what}" for what, num in sorted(counts.items())),
        weight_version=min(versions, default=None),
        idle_frac=sum(known) / len(known) if known else None,
        num=len(actors),
        works="at work" in counts,
    )


# -- curves ----------------------------------------------------------------------------------------------------


def loss(facts: RunFacts, width: int) -> Block:
    curve = next((curve for curve in facts.curves if curve.section == "loss"), None)
    if curve is None:
        return Block("loss", ())
    drawn = chart(curve.values, width=width - EDGE - CHART_LABEL - 1, height=CHART_LINES)
    labels = [f"{max(curve.values):.3g}", *[""] * (CHART_LINES - 2), f"{min(curve.values):.3g}"]
    lines = (
        cells((label, -CHART_LABEL, "dim"), (line, len(line), "bright_cyan"))
        for label, line in zip(labels, drawn, strict=True)
    )
    title = f"loss {curve.style.format(curve.values[-1])}"
    return Block(title, tuple(lines), priority=1, is_whole=True, is_vital=True, footer=f"{len(curve.values)} steps")


def curves(facts: RunFacts, width: int, *, with_loss: bool = False) -> Block:
    lines = (_curve(curve, width - EDGE) for curve in facts.curves if with_loss or curve.section != "loss")
    return Block("curves", tuple(lines), priority=2, keeps=4, footer="now, and since the first step")


def _curve(curve: Curve, width: int) -> Text:
    label_width, value_width, change_width = 16, 9, 9
    spark_width = max(4, width - label_width - value_width - change_width - 3)
    change, tone = _change(curve)
    return cells(
        (curve.label, label_width, ""),
        (spark(curve.values, min(spark_width, curve.num_steps)), spark_width, SECTION_STYLES[curve.section]),
        (curve.style.format(curve.values[-1]), -value_width, "bold"),
        (change, -change_width, tone),
    )


def _change(curve: Curve) -> tuple[str, str]:
    """Since the first value: green where it is for the better."""
    change = curve.values[-1] - curve.values[0]
    amount = curve.style.replace("+", "").format(abs(change))
    if not any(digit in "123456789" for digit in amount):
        return "", ""
    direction = "down" if change < 0 else "up"
    tone = "dim" if curve.better is None else "green" if curve.better == direction else "red"
    return f"{'▼' if change < 0 else '▲'} {amount}", tone


# -- guards and events -----------------------------------------------------------------------------------------


def guards(facts: RunFacts, width: int) -> Block:
    """Two of them side by side; those nearest to firing first."""
    nearest = sorted(facts.guards, key=_nearness, reverse=True)
    column = (width - EDGE - 2) // 2
    meters = [_meter(reading, column) for reading in nearest]
    lines = (Text("  ").join(meters[start : start + 2]) for start in range(0, len(meters), 2))
    return Block("guards", tuple(lines), priority=1, keeps=1, footer="share of the limit at which one fires")


def _nearness(reading: Reading) -> float:
    """1.0 = at its limit."""
    if reading.limit <= 0:
        return 1.0 if reading.value > 0 else 0.0
    return max(0.0, reading.value / reading.limit)


def _meter(reading: Reading, width: int) -> Text:
    share = _nearness(reading)
    style = "red" if reading.fired or share >= NEAR else "yellow" if share >= FAR else "green"
    name_width, share_width = 14, 5
    line = cells((reading.guard, name_width, "bold red" if reading.fired else ""))
    done, left = bar(share, max(4, width - name_width - share_width - 2))
    line.append(" ").append(done, style=style).append(left, style="bright_black")
    return line.append_text(cells(("", 0, ""), (f"{share:.0%}", -share_width, style)))


def events(facts: RunFacts, width: int) -> Block:
    """Of checkpoints only the newest: they would push out what went wrong."""
    newest = next((event for event in reversed(facts.events) if event.kind is EventKind.CHECKPOINT), None)
    told = tuple(event for event in facts.events if event.kind is not EventKind.CHECKPOINT or event is newest)
    lines = tuple(_event_lines(told))
    return Block("events", lines[-20:], priority=0, keeps=min(len(lines), 2), keeps_last=True)


def _event_lines(happened: tuple[Event, ...]) -> Iterator[Text]:
    for event in happened:
        mark, style = EVENT_MARKS[event.kind]
        who = "" if event.role is None else f"{event.role}[{event.rank or 0}] "
        yield Text.assemble(
            (f"{clock(event.time_s):>7} ", "dim"),
            (f"{mark} {event.kind:<10} ", style),
            (who, "bold"),
            " ".join(event.reason.split()),
            no_wrap=True,
            overflow="ellipsis",
        )


TOGETHER, WITH_LOSS = partial(roles, together=True), partial(curves, with_loss=True)

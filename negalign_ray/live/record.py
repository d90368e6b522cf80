"""What a run has written so far, read little by little: its settings, rows of metrics, events.

read(name, offset) -> bytes     of the run directory, or through the conductor of a run elsewhere
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from negalign_ray.config import Config
from negalign_ray.errors import DataError
from negalign_ray.events import FILE_NAME as EVENTS
from negalign_ray.events import Event, parse_event
from negalign_ray.live.curves import curves_of
from negalign_ray.live.facts import QueueFacts, RoleFacts, RunFacts
from negalign_ray.loops.guards import Guards
from negalign_ray.loops.pace import pace_of
from negalign_ray.metrics import FILE_NAME as METRICS
from negalign_ray.metrics import Row
from negalign_ray.settings import load_config
from negalign_ray.settings.strict_yaml import parse_yaml

CONFIG = "config.yaml"
Read = Callable[[str, int], bytes]  # name of a file, offset -> some of what stands there; nothing at its end


@dataclass
class GrowingLines:
    """Whole lines of a file that others append to. `restarts` counts how often it was cut or written anew."""

    read: Read
    name: str
    restarts: int = 0
    _offset: int = 0

    def new(self) -> list[bytes]:
        """What was added since the last call; all of it when the file is no longer the one that was read."""
        if self._offset and self.read(self.name, self._offset - 1)[:1] != b"\n":  # a line ended there
            self._offset = 0
            self.restarts += 1
        content = b""
        while chunk := self.read(self.name, self._offset + len(content)):
            content += chunk
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.splitlines()


@dataclass
class RunRecord:
    """DataError where there is no run."""

    read: Read
    config: Config = field(init=False)
    rows: list[Row] = field(default_factory=list)  # in the order of their steps, lines of one step joined
    events: list[Event] = field(default_factory=list)
    guards: Guards = field(init=False)

    def __post_init__(self) -> None:
        text = b"".join(_pieces(self.read, CONFIG)).decode("utf-8")
        if not text:
            raise DataError(f"there is no {CONFIG}: this is no run, or one that has not begun.")
        self.config = load_config(layers=[parse_yaml(text, where=CONFIG)])
        self._by_step: dict[int, Row] = {}
        self._metrics, self._events = GrowingLines(self.read, METRICS), GrowingLines(self.read, EVENTS)
        self._watch_anew()

    def refresh(self) -> None:
        restarts = self._metrics.restarts
        rows = [row for line in self._metrics.new() if (row := _row_of(line)) is not None]
        if self._metrics.restarts > restarts:
            self._by_step.clear()
            self._watch_anew()
        for row in rows:
            self._add(row)
        self.rows = [self._by_step[step] for step in sorted(self._by_step)]
        restarts = self._events.restarts
        events = [event for line in self._events.new() if (event := parse_event(line)) is not None]
        self.events = events if self._events.restarts > restarts else [*self.events, *events]

    def facts(
        self,
        *,
        name: str,
        phase: str,
        is_over: bool,
        roles: tuple[RoleFacts, ...],
        queue: QueueFacts | None,
        since_s: float = 0.0,
        note: str = "",
    ) -> RunFacts:
        """`since_s`: how long ago the newest row was written."""
        config, rows = self.config, self.steps
        step = int(rows[-1]["step"] or 0) if rows else 0
        heads = (*config.scorers.heads, *config.evaluation.heads)
        steps_left = 0 if is_over else config.learners.steps - step
        return RunFacts(
            name=name,
            method=config.method.name,
            model=config.model.path,
            phase=phase,
            is_over=is_over,
            step=step,
            num_steps=config.learners.steps,
            time_s=float(rows[-1]["time_s"] or 0.0) + since_s if rows else None,
            roles=roles,
            queue=queue,
            pace=pace_of(rows, groups_per_step=config.learners.groups_per_step, steps_left=steps_left),
            curves=curves_of(self.rows, harm_heads=[head.name for head in heads if head.direction == "harm"]),
            guards=tuple(self.guards.readings()),
            events=tuple(self.events),
            note=note,
        )

    @property
    def steps(self) -> list[Row]:
        """Rows of finished steps: one that only holds an evaluation has no time."""
        return [row for row in self.rows if row.get("time_s") is not None]

    def _add(self, row: Row) -> None:
        step = int(row["step"] or 0)
        is_new = step not in self._by_step
        self._by_step.setdefault(step, {}).update(row)
        if is_new:
            self.guards.observe(step, row)

    def _watch_anew(self) -> None:
        # own_answers reads the metric of kl, whose guard is shown; which methods it sleeps for is theirs to say.
        config = self.config
        self.guards = Guards(config.guards, heads=config.scorers.heads, unlearns_own_answers=True)


def _pieces(read: Read, name: str) -> Iterator[bytes]:
    offset = 0
    while piece := read(name, offset):
        offset += len(piece)
        yield piece


def _row_of(line: bytes) -> Row | None:
    """None for a torn line."""
    try:
        row = json.loads(line)
        return row if isinstance(row["step"], int) else None
    except (ValueError, TypeError, KeyError):
        return None

"""What happened to a run besides its steps: <run>/events.jsonl, one JSON object a line.

    conductor, fleet, watchdog --Event--> EventLog --time--> events.jsonl --read_events--> report, terminal

`time_s` counts as in metrics.jsonl. A resumed run goes on in both at the step that it resumes from, so that what
happened after that step in the interrupted part keeps its lines and stands before the line of kind `resume`.
"""

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

log = logging.getLogger(__name__)
FILE_NAME = "events.jsonl"


class EventKind(StrEnum):
    FAULT = "fault"  # a role failed (a RoleError was seen)
    REPLACE = "replace"  # an actor took the place of a failed one
    SCALE = "scale"  # samplers, scorers or references are to become more or fewer; one joined; one left
    GUARD = "guard"  # a guard fired
    ROLLBACK = "rollback"  # the learners go back to a checkpoint
    CHECKPOINT = "checkpoint"  # one was sealed
    RESUME = "resume"  # a run goes on from a checkpoint
    STALL = "stall"  # nothing moves
    FAILED = "failed"  # the run ended with an error, or was interrupted


@dataclass(frozen=True, slots=True)
class Event:
    kind: EventKind
    reason: str  # a sentence for a reader
    role: str | None = None
    rank: int | None = None
    step: int | None = None  # optimizer steps done
    weight_version: int | None = None  # of the samplers
    time_s: float = 0.0  # of the run so far; given by the log
    time: str = ""  # ISO 8601 in UTC; given by the log


Record = Callable[[Event], None]


def forget(event: Event) -> None:
    """A Record for those who keep none."""


class EventLog:
    """Appends to <run_dir>/events.jsonl. Several processes may: a line is written at once, and a line that a kill tore
    is closed by the next log that opens the file."""

    def __init__(self, run_dir: Path, *, earlier_s: float = 0.0, now_s: Callable[[], float] = time.time) -> None:
        """`earlier_s`: how long the run had been going on when it was interrupted. `now_s`: Unix time."""
        self.path = run_dir / FILE_NAME
        self._now_s, self._start_s = now_s, now_s() - earlier_s
        run_dir.mkdir(parents=True, exist_ok=True)
        if not _ends_a_line(self.path):
            _append(self.path, b"\n")

    def record(self, event: Event) -> None:
        """Stamp it with the time and write it. A full disk costs the line and a warning, never the run."""
        now_s = self._now_s()
        when = datetime.fromtimestamp(now_s, UTC).isoformat(timespec="milliseconds")
        stamped = replace(event, time_s=round(now_s - self._start_s, 3), time=when)
        try:
            _append(self.path, json.dumps(asdict(stamped), ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            log.warning("%s could not be written (%s): %s", self.path, error, stamped)


def read_events(run_dir: Path) -> list[Event]:
    """In the order in which they were written; none for a run without the file. Torn lines are left out."""
    path = run_dir / FILE_NAME
    if not path.is_file():
        return []
    return [event for line in path.read_bytes().split(b"\n") if (event := parse_event(line)) is not None]


def parse_event(line: bytes) -> Event | None:
    """None for a torn line."""
    try:
        row = json.loads(line)
        return Event(**{**row, "kind": EventKind(row["kind"])})
    except (ValueError, TypeError, KeyError):
        return None


def _append(path: Path, content: bytes) -> None:
    """In one write, so that lines of several processes do not mix."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, content)
    finally:
        os.close(file)


def _ends_a_line(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size == 0:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"

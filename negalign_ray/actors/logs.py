"""The log files of a run's roles, <run>/logs/ROLE-N.log, read in place or through the run's conductor.

They hold what roles and libraries say about themselves; prompts and answers are in samples/, never here.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from negalign_ray.errors import ConfigError
from negalign_ray.events import FILE_NAME as EVENTS_FILE
from negalign_ray.metrics import FILE_NAME as METRICS_FILE

CONFIG_FILE = "config.yaml"
FOLDER, SUFFIX = "logs", ".log"
RECORDS = (CONFIG_FILE, METRICS_FILE, EVENTS_FILE)  # of the run directory: what `top` reads
POLL_S = 0.5
Line = tuple[str, str]  # name of the log ("sampler-0"), text


class LogSource(Protocol):
    def sizes(self) -> dict[str, int]:
        """Name of every log -> bytes."""

    def read(self, name: str, offset: int) -> bytes:
        """Some of what stands from there on; nothing at the end."""


@dataclass(frozen=True, slots=True)
class LogFolder:
    """Of a run directory that this process sees."""

    run_dir: Path
    chunk_bytes: int = 2**20  # of one answer

    def sizes(self) -> dict[str, int]:
        files = sorted((self.run_dir / FOLDER).glob(f"*{SUFFIX}"))
        return {file.name.removesuffix(SUFFIX): file.stat().st_size for file in files}

    def read(self, name: str, offset: int) -> bytes:
        """ConfigError for a name that is not one of `sizes`: it may come from another machine."""
        if name not in self.sizes():
            raise ConfigError(f"{self.run_dir} has no log {name!r}; it has {', '.join(self.sizes()) or 'none'}.")
        with (self.run_dir / FOLDER / f"{name}{SUFFIX}").open("rb") as file:
            file.seek(offset)
            return file.read(self.chunk_bytes)


def read_record(run_dir: Path, name: str, offset: int, *, chunk_bytes: int = 2**20) -> bytes:
    """Some of what a file of RECORDS holds from there on; nothing at its end, or where it is not there yet."""
    if name not in RECORDS:
        raise ConfigError(f"{name!r} is no record of a run; they are {', '.join(RECORDS)}.")
    try:
        with (run_dir / name).open("rb") as file:
            file.seek(offset)
            return file.read(chunk_bytes)
    except FileNotFoundError:
        return b""


def selected(names: Sequence[str], role: str | None, *, run: str) -> list[str]:
    """All of them, those of a role ("sampler"), or one ("sampler-1"). ConfigError when there is none."""
    found = [name for name in names if role in (None, name, name.rpartition("-")[0])]
    if not found:
        asked = "no log yet" if role is None else f"no log of {role!r}"
        raise ConfigError(f"run {run} has {asked}; it has: {', '.join(names) or 'none'}.")
    return found


@dataclass
class LogReader:
    """Lines of several logs, each log in its own order. Keeps how far it has read."""

    source: LogSource
    run: str
    role: str | None = None
    tail_bytes: int = 2**18  # in which the last lines are looked for
    _offsets: dict[str, int] = field(default_factory=dict)

    def tail(self, num_lines: int) -> Iterator[Line]:
        """The last `num_lines` of every log (0 = all of it)."""
        sizes = self.source.sizes()
        for name in selected(list(sizes), self.role, run=self.run):
            start = max(0, sizes[name] - self.tail_bytes) if num_lines else 0
            lines, self._offsets[name] = self._lines(name, start, sizes[name])
            for line in lines[-num_lines:]:
                yield name, line

    def follow(self, goes_on: Callable[[], bool], *, pause: Callable[[float], None] = time.sleep) -> Iterator[Line]:
        """What is written from now on, also to logs that are new, until the run no longer goes on."""
        while True:
            last = not goes_on()  # asked first: what was written before the end is read below
            for name, size in self._grown():
                lines, self._offsets[name] = self._lines(name, self._offsets.get(name, 0), size)
                for line in lines:
                    yield name, line
            if last:
                return
            pause(POLL_S)

    def _grown(self) -> Iterator[tuple[str, int]]:
        sizes: Mapping[str, int] = self.source.sizes()
        for name, size in sizes.items():
            if self.role in (None, name, name.rpartition("-")[0]) and size > self._offsets.get(name, 0):
                yield name, size

    def _lines(self, name: str, start: int, end: int) -> tuple[list[str], int]:
        """Whole lines between two places, and where the next ones begin. A log that is cut in the middle of a line
        begins with the next one."""
        content = b""
        while start + len(content) < end and (chunk := self.source.read(name, start + len(content))):
            content += chunk
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.decode("utf-8", errors="replace").splitlines()
        return (lines[1:] if start and name not in self._offsets else lines), start + len(whole)

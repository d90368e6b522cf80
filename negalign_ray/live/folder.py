"""A run directory as a source of facts, of a run that goes on or has ended. Needs no Ray."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from negalign_ray.actors.locate import is_going_on
from negalign_ray.actors.logs import LogFolder, read_record
from negalign_ray.config import Config
from negalign_ray.events import EventKind
from negalign_ray.live.facts import QueueFacts, RoleFacts, RunFacts
from negalign_ray.live.record import METRICS, RunRecord
from negalign_ray.loops.pace import idle_fracs
from negalign_ray.metrics import Row

ROLES = ("sampler", "scorer", "reference", "guide", "learner")


class FolderSource:
    def __init__(self, run_dir: Path, *, note: str = "", now_s: Callable[[], float] = time.time) -> None:
        """`note`: why this source, where another was asked for. `now_s`: Unix time."""
        self._run_dir, self._note, self._now_s = run_dir, note, now_s
        self._record = RunRecord(partial(read_record, run_dir))

    def look(self) -> RunFacts:
        self._record.refresh()
        goes_on, rows = is_going_on(self._run_dir), self._record.steps
        return self._record.facts(
            name=self._run_dir.resolve().name,
            phase="running" if goes_on else self._ending(),
            is_over=not goes_on,
            roles=tuple(self._roles(goes_on)),
            queue=queue_of(rows[-1], self._record.config) if rows else None,
            since_s=self._age_s(self._run_dir / METRICS) if goes_on else 0.0,
            note=self._note,
        )

    def _ending(self) -> str:
        """How a run that no longer goes on came to its end."""
        try:
            summary = json.loads((self._run_dir / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            events = self._record.events
            return "failed" if events and events[-1].kind is EventKind.FAILED else "cut short"
        if summary.get("stopped_by"):
            return f"ended by guard {summary['stopped_by']['guard']}"
        return "finished" if summary.get("steps") == self._record.config.learners.steps else "stopped early"

    def _roles(self, goes_on: bool) -> Iterator[RoleFacts]:
        """Those that have log files: what each of their actors does is known to the conductor alone."""
        sizes = LogFolder(self._run_dir).sizes()
        logs = {role: [name for name in sizes if name.startswith(f"{role}-")] for role in ROLES}
        rows = self._record.steps
        nums = {role: num for role, num in num_actors(self._record.config, rows).items() if logs[role]}
        shares = idle_fracs(rows, num_actors=nums)
        for role, num in nums.items():
            ages_s = [self._age_s(self._run_dir / "logs" / f"{name}.log") for name in logs[role]]
            yield RoleFacts(
                role,
                None,
                doing="last line of its log" if goes_on else "",
                for_s=min(ages_s) if goes_on else None,
                weight_version=version_of(role, rows),
                idle_frac=shares.get(role),
                num=num,
            )

    def _age_s(self, path: Path) -> float:
        return max(0.0, self._now_s() - path.stat().st_mtime) if path.exists() else 0.0


def num_actors(config: Config, rows: Sequence[Row]) -> dict[str, int]:
    """In the order of ROLES. Samplers, scorers and references come and go."""
    set_up = (config.samplers.num, config.scorers.num, config.references.num, 1, config.learners.num)
    last = rows[-1] if rows else {}
    return {role: int(last.get(f"{role}/num") or num) for role, num in zip(ROLES, set_up, strict=True)}


def version_of(role: str, rows: Sequence[Row]) -> int | None:
    key = {"sampler": "sampler/version", "learner": "step"}.get(role)
    version = rows[-1].get(key) if rows and key else None
    return None if version is None else int(version)


def queue_of(row: Row, config: Config) -> QueueFacts | None:
    """As it was when the row's step was finished."""
    buffered, under_way = row.get("conductor/buffer_groups"), row.get("conductor/in_flight_groups")
    if buffered is None or under_way is None:
        return None
    return QueueFacts(int(under_way), int(buffered) - int(under_way), config.sampling.buffer_groups)

"""What a run directory holds, as far as it is there: a report is also made of a run that is going on, or was cut short.

config.yaml  card.json  summary.json  evaluation.json  metrics.jsonl  events.jsonl  samples/ --read_run--> RunFiles
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from negalign_ray.errors import DataError
from negalign_ray.events import FILE_NAME as EVENTS
from negalign_ray.events import Event, read_events
from negalign_ray.metrics import FILE_NAME as METRICS
from negalign_ray.metrics import Row, read_metrics
from negalign_ray.report.summary_parts import sound_summary

CONFIG, CARD, SUMMARY, SIDES = "config.yaml", "card.json", "summary.json", "evaluation.json"
MARKS_OF_A_RUN = (CONFIG, METRICS, SUMMARY)
Tree = Mapping[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """The files of one run; what is missing or broken is empty here, and broken files are named in `problems`."""

    path: Path
    name: str  # as the report calls the run
    config: Tree = field(default_factory=dict)  # as written, also with settings of an older version
    card: Tree = field(default_factory=dict)
    summary: Tree = field(default_factory=dict)
    sides: Tree = field(default_factory=dict)
    rows: Sequence[Row] = ()
    events: Sequence[Event] = ()
    problems: tuple[str, ...] = ()

    @property
    def is_measured(self) -> bool:
        return bool(self.summary.get("figures"))

    @property
    def is_compared(self) -> bool:
        """It was measured before and after."""
        return self.is_measured and self.summary.get("after") is not None

    def is_unreadable(self, name: str) -> bool:
        """The file is there, and was left out."""
        return any(problem.startswith(f"{name} was left out") for problem in self.problems)

    def setting(self, name: str, default: Any = None) -> Any:
        """`setting("learners.steps")`; `default` where the file has none."""
        value: Any = self.config
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return value


def read_runs(paths: Sequence[Path]) -> list[RunFiles]:
    """Raises DataError for a folder that is no run. Runs of one name are told apart by the folders they lie in."""
    for path in paths:
        if not any((path / name).is_file() for name in MARKS_OF_A_RUN):
            raise DataError(
                f"{path} is no run: it has none of {', '.join(MARKS_OF_A_RUN)}; name a folder <run.dir>/<run.name>."
            )
    return [_read_run(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def _names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, or more of it until no two are alike."""
    absolute = [path.resolve() for path in paths]
    if len(set(absolute)) < len(absolute):
        raise DataError(f"a run is named twice: {' '.join(map(str, paths))}; name every run once.")
    for depth in range(1, max(len(path.parts) for path in absolute)):
        names = ["/".join(path.parts[-depth:]) for path in absolute]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in absolute]


def _read_run(path: Path, name: str) -> RunFiles:
    problems: list[str] = []
    rows: Sequence[Row] = ()
    if (path / METRICS).is_file():
        try:
            rows = read_metrics(path)
        except (DataError, UnicodeDecodeError) as error:
            problems.append(f"{METRICS} was left out: {error}")
    return RunFiles(
        path=path,
        name=name,
        config=_read_mapping(path / CONFIG, problems),
        card=_read_mapping(path / CARD, problems),
        summary=_read_summary(path / SUMMARY, problems),
        sides=_read_mapping(path / SIDES, problems),
        rows=rows,
        events=read_events(path) if (path / EVENTS).is_file() else (),
        problems=tuple(problems),
    )


def _read_summary(path: Path, problems: list[str]) -> Tree:
    summary = _read_mapping(path, problems)
    if not summary:
        return {}
    sound, odd = sound_summary(summary)
    if odd:
        problems.append(f"{path.name} has another layout in {', '.join(odd)}; what cannot be read is left out.")
    return sound


def _read_mapping(path: Path, problems: list[str]) -> Tree:
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        value = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(f"{path.name} was left out: {type(error).__name__} while reading it.")
        return {}
    if not isinstance(value, Mapping):
        problems.append(f"{path.name} was left out: it holds no mapping.")
        return {}
    return value

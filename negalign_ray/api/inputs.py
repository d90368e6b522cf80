"""What a program hands over as objects becomes files in <run>/inputs: the configuration names them, and a run that is
resumed or evaluated later finds them again.

Files are named after their content, so that those of an earlier run in the same folder are never changed.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from negalign_ray.api.functions import importable_target, source_of
from negalign_ray.errors import ConfigError, DataError

FOLDER = "inputs"
Rows = Iterable[Mapping[str, Any]]
Function = Callable[[list[tuple[str, str]]], object]  # (prompt, answer) pairs in, one number each out
Head = Function | Mapping[str, Any]


def data_path(data: str | Path | Rows, *, run_dir: Path) -> str:
    """`data.path` for a path, a name, or rows (dictionaries, a `datasets.Dataset`), which are written as JSON lines.

    DataError names the first row that is no dictionary or holds what JSON cannot.
    """
    if isinstance(data, str | Path):
        return str(data)
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise DataError(
            f"negatives is a {type(data).__name__}; give a path, or rows: a list of dictionaries such as "
            '{"prompt": ..., "rejected": ...}. Of a DatasetDict, give one split.'
        )
    lines = [_line(number, row) for number, row in enumerate(data, start=1)]
    return str(_write(run_dir, "data", "".join(lines), suffix=".jsonl"))


def _line(number: int, row: Any) -> str:
    if not isinstance(row, Mapping):
        raise DataError(
            f"negatives: row {number} is a {type(row).__name__}, not a dictionary of columns such as "
            '{"prompt": ..., "rejected": ...}; of a pandas frame, give frame.to_dict("records").'
        )
    try:
        return json.dumps(dict(row), ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise DataError(f"negatives: row {number} cannot be written as JSON ({error}); make it plain text.") from error


def head_settings(heads: Sequence[Head], *, where: str, run_dir: Path) -> list[dict[str, Any]]:
    """Entries of `scorers.heads` or `evaluation.heads`. A function is short for {"target": function}; its name is the
    head's, and a high score means harm unless `direction` says "help". ConfigError: a function no file can hold."""
    return [_head(head, where=f"{where}[{index}]", run_dir=run_dir) for index, head in enumerate(heads)]


def _head(head: Head, *, where: str, run_dir: Path) -> dict[str, Any]:
    settings: dict[str, Any] = dict(head) if isinstance(head, Mapping) else {"target": head}
    function = settings.get("target")
    if isinstance(function, str | Path):
        return settings | {"target": str(function)}
    if not callable(function):
        raise ConfigError(f"{where}.target is a {type(function).__name__}; give a function, or text as in a YAML file.")
    target = importable_target(function)
    if target is None:
        source = source_of(function, where=f"{where}.target")
        file = _write(run_dir, function.__name__, source, suffix=".py")
        target = f"{file}:{function.__name__}"
    return {"name": getattr(function, "__name__", ""), "kind": "python"} | settings | {"target": target}


def _write(run_dir: Path, name: str, text: str, *, suffix: str) -> Path:
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    path = (run_dir / FOLDER / f"{name}-{digest}{suffix}").resolve()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return path

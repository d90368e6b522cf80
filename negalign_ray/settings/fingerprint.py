"""What decides the result of a run: its settings, and the contents of the files that they name."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from negalign_ray.config import Config
from negalign_ray.settings import Tree
from negalign_ray.settings.comparison import differences
from negalign_ray.settings.explain import shown
from negalign_ray.user_code import file_of

Sections = dict[str, Sequence[str] | None]  # section -> names; None = all of the section
# Settings that change no result of a run that took all its steps.
WITHOUT_EFFECT: Sections = {
    "run": ("dir", "overwrite", "trackers", "prometheus"),
    "deadlines": None,
    "guards": None,
    "checkpoints": None,
    "report": None,
}
_PLACE = ("cpus", "gpus", "threads", "labels")
# Settings that a resumed run may change: what is measured, and where and how fast work is done. Rounding may differ.
HARMLESS_ON_RESUME: Sections = WITHOUT_EFFECT | {
    "run": ("dir", "overwrite", "name", "trackers", "prometheus"),
    "evaluation": None,
    "follow": None,
    "samplers": (
        *(*_PLACE, "num", "tensor_parallel_size", "gpu_memory_utilization", "kv_cache_gib", "max_num_seqs"),
        *("orders_per_call", "autoscale", "weight_transfer", "sleep"),
    ),
    "scorers": (*_PLACE, "num", "max_batch_wait_s"),
    "references": (*_PLACE, "num", "micro_batch_tokens", "cache_size"),
    "guide": _PLACE,
    "learners": (
        *(
            *_PLACE,
            "num",
            "min_num",
            "grow_after_s",
            "restarts",
            "zero_stage",
            "micro_batch_tokens",
            "max_row_tokens",
            "logit_chunk_tokens",
        ),
        *("gradient_checkpointing", "mismatch_every"),
    ),
}
# Endings of the names of settings that name a file or a folder.
NAMES_A_FILE = ("path", "target", "rpos", "rneg", "backbone", "instructions", "chat_template")


def fingerprint(config: Config) -> Tree:
    """{"settings": ..., "inputs": {file or folder: sha256}}; what is no file (a packaged model) counts by its name."""
    tree = _settings(config)
    return {"settings": tree, "inputs": {name: _digest(Path(name)) for name in sorted(set(_inputs(tree)))}}


def changes(written: Tree, config: Config, *, harmless: Sections = WITHOUT_EFFECT) -> list[str]:
    """One line for everything that differs between the fingerprint of an earlier run and `config`; empty = the same.

    A setting that came into being since then has its default on both sides; `harmless` ones are not looked at.
    """
    try:
        earlier = _settings(Config.model_validate(written["settings"]), harmless)
    except ValidationError:  # a setting that no longer exists
        earlier = written["settings"]
    now = _settings(config, harmless)
    lines = [f"{name}={shown(there)} there, {shown(here)} now" for name, there, here in differences(earlier, now)]
    known = written["inputs"]
    inputs = {name: _digest(Path(name)) for name in sorted(set(_inputs(now)))}
    return lines + [f"{name} has changed" for name, digest in inputs.items() if known.get(name) != digest]


def _settings(config: Config, left_out: Sections = WITHOUT_EFFECT) -> Tree:
    tree = config.model_dump(mode="json")
    for section, names in left_out.items():
        if names is None:
            del tree[section]
            continue
        for name in names:
            del tree[section][name]
    return tree


def _inputs(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _inputs(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _inputs(inner, name)
    elif isinstance(value, str) and name.endswith(NAMES_A_FILE):
        file = file_of(value)  # of path/to/file.py:NAME
        if file is not None or Path(value).exists():
            yield value if file is None else str(file)


def _digest(path: Path) -> str:
    """Of a file's contents, or of the names and contents of all files in a folder."""
    total = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(inner for inner in path.rglob("*") if inner.is_file()):
        total.update(str(file.relative_to(path)).encode())
        stat = file.stat()
        total.update(_file_digest(file, stat.st_size, stat.st_mtime_ns))
    return total.hexdigest()


@lru_cache(maxsize=4096)
def _file_digest(file: Path, size: int, mtime_ns: int) -> bytes:
    """Size and time are there for the cache: many runs share a model of gigabytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()

"""A summary.json as the report reads it: what is missing is empty, what has another layout is left out and named."""

from collections.abc import Mapping
from typing import Any

Tree = Mapping[str, Any]
CHANGE = {"mean", "low", "high"}
BY_KEY: dict[str, set[str]] = {  # parts that are mappings, and what each of their entries must have
    "figures": {"title", "better"},
    "heads": {"direction"},
    "difference": CHANGE,
    "tests": {"p_value"},
    "by_behaviour": {"before", "after", "difference"},
}
ROWS: dict[str, set[str]] = {  # the same of parts that are lists
    "win_rates": {"judge", "prompts", "wins", "ties", "losses", "unreadable", "win_rate", "p_value"},
    "guards": {"guard", "metric", "first_step", "step", "value", "limit", "action", "reason"},
}


def sound_summary(summary: Tree) -> tuple[dict[str, Any], list[str]]:
    """With every part that the report reads, and the names of those in which something was left out.

    {"figures": {"harm": {"title": "harm"}}} -> {"figures": {}, "difference": {}, ...}, ["figures"]
    """
    odd: set[str] = set()
    sound: dict[str, Any] = dict(summary)
    for name, needed in BY_KEY.items():
        sound[name] = _entries(summary.get(name), needed, name=name, odd=odd)
    for name, needed in ROWS.items():
        rows = summary.get(name) or []
        sound[name] = [row for row in rows if _has(row, needed)] if isinstance(rows, list) else []
        if len(sound[name]) != len(rows):
            odd.add(name)
    sides = {side: _mapping(summary.get(side), name=side, odd=odd) for side in ("before", "after")}
    sound |= {"before": sides["before"], "after": sides["after"] if summary.get("after") is not None else None}
    bounds = _mapping(summary.get("intervals"), name="intervals", odd=odd)
    sound["intervals"] = {
        side: _entries(bounds.get(side), {"low", "high"}, name="intervals", odd=odd) for side in ("before", "after")
    }
    for part in sound["by_behaviour"].values():
        for side in ("before", "after"):
            part[side] = _mapping(part[side], name="by_behaviour", odd=odd)
        part["difference"] = _entries(part["difference"], CHANGE, name="by_behaviour", odd=odd)
        part["tests"] = _entries(part.get("tests"), {"p_value"}, name="by_behaviour", odd=odd)
    if summary.get("stopped_by") is not None and not _has(summary["stopped_by"], {"guard", "reason"}):
        sound["stopped_by"] = None
        odd.add("stopped_by")
    return sound, sorted(odd)


def _entries(value: Any, needed: set[str], *, name: str, odd: set[str]) -> dict[str, Any]:
    entries = _mapping(value, name=name, odd=odd)
    sound = {key: dict(entry) for key, entry in entries.items() if _has(entry, needed)}
    if len(sound) != len(entries):
        odd.add(name)
    return sound


def _mapping(value: Any, *, name: str, odd: set[str]) -> Tree:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        odd.add(name)
        return {}
    return value


def _has(entry: Any, needed: set[str]) -> bool:
    return isinstance(entry, Mapping) and needed <= entry.keys()

"""The samples of a report, packed: compressed, so that no preview, search index or view of the page's source shows
texts that may be harmful, and so that more of them fit.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from negalign_ray.report.curves import short
from negalign_ray.report.read import RunFiles
from negalign_ray.report.sample_files import Answer, Item, count_groups, evaluated, evenly, groups

MAX_PACKED_BYTES = 2_000_000  # of the whole page's 3 MB


@dataclass(frozen=True)
class Kept:
    """How many of the run's items are in the report."""

    kept: int
    whole: int


@dataclass(frozen=True)
class PackedSamples:
    data: str  # base64 of zlib of JSON; "" without samples
    evaluation: Kept
    training: Kept

    @property
    def is_empty(self) -> bool:
        return not self.data


def pack_samples(runs: Sequence[RunFiles], *, max_samples: int, max_bytes: int = MAX_PACKED_BYTES) -> PackedSamples:
    """At most `max_samples` prompts of all runs together, fewer where they would take more than `max_bytes`.

    Evaluated prompts come first; what they leave goes to training groups, the same number of every run.
    """
    asked = evaluated(runs)
    num_groups = [count_groups(run) for run in runs]
    while True:
        num_asked = min(len(asked), max_samples)
        share = (max_samples - num_asked) // max(1, sum(num > 0 for num in num_groups))
        items = [asked[index] for index in evenly(len(asked), num_asked)]
        for number, run in enumerate(runs):
            items += groups(run, share, number=number)
        data = _pack(items, runs) if items else ""
        if len(data) <= max_bytes:
            break
        max_samples //= 2
    trained = len(items) - num_asked
    return PackedSamples(data, Kept(num_asked, len(asked)), Kept(trained, sum(num_groups)))


def _pack(items: Sequence[Item], runs: Sequence[RunFiles]) -> str:
    content = {"runs": [run.name for run in runs], "heads": _heads(runs), "items": [_as_json(item) for item in items]}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    # A text may hold half of a surrogate pair, which UTF-8 has no bytes for.
    return base64.b64encode(zlib.compress(text.encode("utf-8", "replace"), 9)).decode("ascii")


def _as_json(item: Item) -> dict[str, Any]:
    """Without what is None or empty."""
    row = {key: value for key, value in vars(item).items() if value is not None}
    return row | {"answers": [_answer_as_json(answer) for answer in item.answers]}


def _answer_as_json(answer: Answer) -> dict[str, Any]:
    row = {key: value for key, value in vars(answer).items() if value not in (None, "", {})}
    if "scores" in row:
        row["scores"] = {head: short(score) for head, score in answer.scores.items()}
    return {"text": "", **row}


def _heads(runs: Sequence[RunFiles]) -> dict[str, dict[str, Any]]:
    """Direction and threshold of every head that may have scored a text."""
    heads: dict[str, dict[str, Any]] = {}
    for run in runs:
        for head in (*run.setting("evaluation.heads", ()), *run.setting("scorers.heads", ())):
            if isinstance(head, dict) and "name" in head:
                known = {"direction": head.get("direction", "harm"), "threshold": head.get("threshold", 0.5)}
                heads.setdefault(str(head["name"]), known)
    return heads

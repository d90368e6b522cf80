"""The texts of a run: evaluated prompts with the answers of both models, and the groups that were trained on.

A run may have written gigabytes of groups, so files are read line by line, and only the lines to keep are parsed.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from negalign_ray.report.read import RunFiles

MAX_CHARS = 4000  # of one text
ABOUT = {"instruction": "instruction {}", "weight_version": "version {}", "num_tokens": "{} tokens"}
PARTS = ("harmful", "benign", "overrefusal")  # of evaluation.json, in the order of the prompts
SIDES = ("before", "after", "answer")  # "answer": of an evaluation of one model


@dataclass(frozen=True)
class Answer:
    role: str  # before, after, answer; or negative, positive, sample
    text: str
    scores: Mapping[str, float] = field(default_factory=dict)  # by head
    about: str = ""  # "instruction honest, version 12, 31 tokens"
    run: int | None = None  # whose answer it is, where an item holds those of several runs


@dataclass(frozen=True)
class Item:
    """One prompt with its answers. `run` is None where the item belongs to several."""

    kind: Literal["evaluation", "training"]
    prompt: str
    answers: tuple[Answer, ...]
    behaviour: str | None = None
    run: int | None = None
    step: int | None = None


def evaluated_prompts(run_dir: Path) -> list[str]:
    """In the order in which they were asked; [] where none were."""
    return [row["prompt"] for row in _evaluation_rows(run_dir)]


def evaluated(runs: Sequence[RunFiles]) -> list[Item]:
    """One item for every prompt, with the answers of all runs that were asked it; equal answers before stand once."""
    found: dict[tuple[str, int], Item] = {}
    for number, run in enumerate(runs):
        times_asked: dict[str, int] = {}
        for row, scores in zip(_evaluation_rows(run.path), _scores(run), strict=False):
            again = times_asked[row["prompt"]] = times_asked.get(row["prompt"], 0) + 1
            answers = [
                Answer(side, shortened(row[side]), scores.get(side, {}), run=number if len(runs) > 1 else None)
                for side in SIDES
                if isinstance(row.get(side), str)
            ]
            key = row["prompt"], again
            known = found.get(key)
            if known is None:
                found[key] = Item("evaluation", shortened(row["prompt"]), tuple(answers), row.get("behaviour"))
            else:
                said_before = {answer.text for answer in known.answers if answer.role == "before"}
                new = [answer for answer in answers if answer.role != "before" or answer.text not in said_before]
                found[key] = Item("evaluation", known.prompt, (*known.answers, *new), known.behaviour)
    return list(found.values())


def _evaluation_rows(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "samples" / "evaluation.jsonl"
    return [row for row in _parsed(_lines(path)) if isinstance(row.get("prompt"), str)] if path.is_file() else []


def _scores(run: RunFiles) -> list[dict[str, dict[str, float]]]:
    """For every evaluated prompt {"before": {head: score}, "after": ...}; {} where evaluation.json does not say."""
    rows = _evaluation_rows(run.path)
    unknown: list[dict[str, dict[str, float]]] = [{} for _ in rows]
    try:
        by_side = {name: _scores_of(side, [row[name] for row in rows]) for name, side in run.sides.items()}
    except (KeyError, TypeError, IndexError, ValueError, AttributeError):
        return unknown
    return [{name: scores[index] for name, scores in by_side.items()} for index in range(len(rows))]


def _scores_of(side: Mapping[str, Any], texts: Sequence[str]) -> list[dict[str, float]]:
    """ValueError when the side does not belong to the texts."""
    parts = [side[name] for name in PARTS if name in side]
    if [text for part in parts for text in part["texts"]] != list(texts):
        raise ValueError("evaluation.json and samples/evaluation.jsonl are of different evaluations")
    return [
        {head: float(values[index]) for head, values in part["scores"].items()}
        for part in parts
        for index in range(len(part["texts"]))
    ]


def count_groups(run: RunFiles) -> int:
    return sum(_count_lines(path) for path in _rank_files(run))


def groups(run: RunFiles, wanted: int, *, number: int) -> list[Item]:
    """At most `wanted` groups, evenly spread over what each rank trained on, in the order of the steps."""
    files = [(path, _count_lines(path)) for path in _rank_files(run)]
    whole = sum(num for _, num in files)
    items: list[Item] = []
    for path, num in files:
        kept = set(evenly(num, num if whole <= wanted else wanted * num // whole))
        rows = _parsed(line for index, line in enumerate(_lines(path)) if index in kept)
        items += [_group(row, number) for row in rows if isinstance(row.get("responses"), list)]
    return sorted(items, key=lambda item: item.step or 0)


def _rank_files(run: RunFiles) -> list[Path]:
    return sorted((run.path / "samples").glob("rank-*.jsonl"))


def _group(row: Mapping[str, Any], number: int) -> Item:
    answers = tuple(_response(response) for response in row["responses"])
    return Item(
        "training", shortened(str(row.get("prompt", ""))), answers, row.get("behaviour"), number, row.get("step")
    )


def _response(row: Mapping[str, Any]) -> Answer:
    about = [text.format(row[key]) for key, text in ABOUT.items() if row.get(key) is not None]
    rewards = {head: float(score) for head, score in (row.get("rewards") or {}).items()}
    return Answer(str(row.get("role", "")), shortened(str(row.get("text", ""))), rewards, ", ".join(about))


def shortened(text: str) -> str:
    left = len(text) - MAX_CHARS
    return text if left <= 0 else f"{text[:MAX_CHARS]} … [{left} more characters]"


def evenly(num: int, wanted: int) -> list[int]:
    """`wanted` of `num` indices, the first and the last among them: (9, 3) -> 0, 4, 8."""
    if wanted >= num:
        return list(range(num))
    if wanted < 2:
        return list(range(wanted))
    return [index * (num - 1) // (wanted - 1) for index in range(wanted)]


def _count_lines(path: Path) -> int:
    return sum(1 for _ in _lines(path))


def _lines(path: Path) -> Iterator[bytes]:
    """Whole lines; one that a kill tore has no line break."""
    with path.open("rb") as file:
        yield from (line for line in file if line.endswith(b"\n"))


def _parsed(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row

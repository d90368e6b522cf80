"""What a model says and thinks, and what heads say of it, kept in a folder part by part as it comes.

    <folder>/answers-<key>.json     key: model, engine, number type, sampling, every prompt; the first answers of them
    <folder>/prices-<key>.json      key: model, number type; one log-prob per (prompt, response)
    <folder>/entropies-<key>.json   likewise
    <folder>/scores-<key>.json      key: head and the files it names; one score per (prompt, answer)

An evaluation that was cut short goes on from there, runs from the same base model share its folder, and seeds share its
log-probs. A kept log-prob was computed in rows packed with other responses, so it may differ by rounding from one
computed anew.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from negalign_ray.config import HeadConfig
from negalign_ray.evaluation.pricing import Price, PriceBook, merge_by_prompt
from negalign_ray.records import Generation, Group, SampleRequest, SamplingSpec, TokenIds

PROMPTS_PER_CALL = 256  # of prompts answered; deadlines.sample_s bounds a call, however large the evaluation is
GROUPS_PER_CALL = 128  # of prompts priced, likewise deadlines.reference_s
PAIRS_PER_CALL = 256  # of answers scored, likewise deadlines.score_s

Generate = Callable[[Sequence[SampleRequest], SamplingSpec], list[Generation]]
Item = TypeVar("Item")


def in_parts(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@dataclass(frozen=True)
class ModelCache:
    """`model_path`, `engine` and `dtype` name the model; its files count by name, size and time."""

    folder: Path
    model_path: Path
    engine: str
    dtype: str

    def answers(self, requests: Sequence[SampleRequest], spec: SamplingSpec, *, generate: Generate) -> list[Generation]:
        """The answers to these requests, without log-probs where they were kept. `generate` is asked for what is
        missing, PROMPTS_PER_CALL at a time, and each part is kept before the next is asked for."""
        asked = [[*request.context_ids, -1, request.seed] for request in requests]
        sampling = [spec.max_new_tokens, spec.temperature, spec.top_p]
        path = self._path("answers", self._model(), self.engine, sampling, asked)
        answers = [Generation(tuple(ids), (), *rest) for ids, *rest in _read(path, [])]
        for part in in_parts(requests[len(answers) :], PROMPTS_PER_CALL):
            answers += generate(part, spec)
            _write(path, [[answer.token_ids, answer.finish_reason, answer.text] for answer in answers])
        return answers

    def book(
        self, groups: Iterable[Group], *, what: Literal["prices", "entropies"] = "prices", measure: Price
    ) -> PriceBook:
        """One number for every response of `groups`: kept ones, and those of `measure` for the rest, kept likewise."""
        path = self._path(what, self._model())
        known: dict[str, float] = _read(path, {})
        merged = merge_by_prompt(groups)
        found: dict[tuple[TokenIds, TokenIds], float] = {}
        missing: list[Group] = []
        for group in merged:
            prompt = group.prompt.token_ids
            names = {response.token_ids: _digest([prompt, response.token_ids]) for response in group.responses}
            found |= {(prompt, ids): known[name] for ids, name in names.items() if name in known}
            unknown = tuple(response for response in group.responses if names[response.token_ids] not in known)
            if unknown:
                missing.append(replace(group, responses=unknown))
        for part in in_parts(missing, GROUPS_PER_CALL):
            fresh = PriceBook.of(part, measure).prices
            found |= fresh
            known |= {_digest(list(key)): value for key, value in fresh.items()}
            _write(path, known)
        return PriceBook(found)

    def _model(self) -> list[Any]:
        return [str(self.model_path), self.dtype, _stats(self.model_path)]

    def _path(self, what: str, *key: Any) -> Path:
        return self.folder / f"{what}-{_digest(list(key))[:16]}.json"


@dataclass(frozen=True)
class ScoreCache:
    """The scores of heads, by text."""

    folder: Path

    def scores(
        self,
        pairs: Sequence[tuple[str, str]],
        heads: Sequence[HeadConfig],
        *,
        score: Callable[[Sequence[tuple[str, str]]], Sequence[dict[str, float]]],
    ) -> dict[str, list[float]]:
        """Head name -> a score for every (prompt, answer); `score` is asked for pairs that some head has not scored."""
        paths = {head.name: self._path(head) for head in heads}
        known: dict[str, dict[str, float]] = {name: _read(path, {}) for name, path in paths.items()}
        names = {pair: _digest(pair) for pair in pairs}
        missing = [pair for pair, key in names.items() if any(key not in scores for scores in known.values())]
        for part in in_parts(missing, PAIRS_PER_CALL):
            for pair, row in zip(part, score(part), strict=True):
                for name, scores in known.items():
                    scores[names[pair]] = row[name]
            for name, path in paths.items():
                _write(path, known[name])
        return {name: [scores[names[pair]] for pair in pairs] for name, scores in known.items()}

    def _path(self, head: HeadConfig) -> Path:
        key = [head.model_dump(mode="json"), _stats(Path(head.target))]
        return self.folder / f"scores-{_digest(key)[:16]}.json"


def _stats(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of a file or of every file of a folder; nothing where there is none."""
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    return [(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in files]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _read(path: Path, otherwise: Any) -> Any:
    return json.loads(path.read_text()) if path.is_file() else otherwise


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)

"""What the base model says and thinks, kept in a folder: it does not depend on the method that is trained from it.

    <folder>/answers-<key>.json   key: model, engine, number type, sampling, every prompt
    <folder>/prices-<key>.json    key: model, number type; one log-prob per (prompt, response), shared by all seeds

A kept log-prob was computed in rows packed with other responses, so it may differ by rounding from one computed anew.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from negalign_ray.evaluation.measure import Answered
from negalign_ray.evaluation.pricing import PriceBook, merge_by_prompt
from negalign_ray.records import Generation, Group, SampleRequest, SamplingSpec, TokenIds


@dataclass(frozen=True)
class BaseCache:
    """`model_path`, `engine` and `dtype` name the base; its files count by name, size and time."""

    folder: Path
    model_path: Path
    engine: str
    dtype: str

    def answered(
        self, requests: Sequence[SampleRequest], spec: SamplingSpec, *, num_harmful: int, answer: Callable[[], Answered]
    ) -> Answered:
        """The kept answers to these requests, else those of `answer`, which are kept.

        The first `num_harmful` requests are the held-out prompts, the others the benign ones.
        """
        asked = [[*request.context_ids, -1, request.seed] for request in requests]
        sampling = [spec.max_new_tokens, spec.temperature, spec.top_p]
        path = self._path("answers", self._model(), self.engine, sampling, asked)
        if path.is_file():
            kept = [Generation(tuple(ids), (), *rest) for ids, *rest in json.loads(path.read_text())]
            return Answered(tuple(kept[:num_harmful]), tuple(kept[num_harmful:]))
        answered = answer()
        said = (*answered.harmful, *answered.benign)
        _write(path, [[generation.token_ids, generation.finish_reason, generation.text] for generation in said])
        return answered

    def priced(self, groups: Iterable[Group], price: Callable[[Sequence[Group]], PriceBook]) -> PriceBook:
        """The log-probs of every response of `groups`: kept ones, and those of `price` for the rest, then kept too."""
        path = self._path("prices", self._model())
        known: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
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
        if missing:
            fresh = dict(price(missing).prices)
            found |= fresh
            _write(path, known | {_digest(list(key)): logprob for key, logprob in fresh.items()})
        return PriceBook(found)

    def _model(self) -> list[Any]:
        files = sorted(path for path in self.model_path.rglob("*") if path.is_file())
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return [str(self.model_path), self.dtype, stats]

    def _path(self, what: str, *key: Any) -> Path:
        return self.folder / f"{what}-{_digest(list(key))[:16]}.json"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)

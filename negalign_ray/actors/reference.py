"""The reference role: a model that prices every response under the bare prompt, and remembers what it priced.

Frozen, unless `references.follow` is snapshot: then it becomes the policy's snapshot at every refresh (self-play).
"""

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import ray

from negalign_ray.actors.processes import open_log
from negalign_ray.config import Config
from negalign_ray.errors import RoleError
from negalign_ray.records import Group, Response, TokenIds, WeightReceipt

if TYPE_CHECKING:
    from negalign_ray.engines.weights import WeightBundle


@ray.remote
class Reference:
    """`names` says which references this model is: ("rpos", "rneg") when both are one model."""

    def __init__(self, config: Config, *, names: tuple[str, ...], rank: int, model_path: str, dtype: str) -> None:
        from negalign_ray.engines.frozen import FrozenModel  # 6 s of imports that only this process needs

        open_log(config.run_dir, f"reference-{names[0]}-{rank}")
        self._names, self._rank = names, rank
        self._version: int | None = 0  # of the weights held; None while an update is unconfirmed
        self._model = FrozenModel.of_run(config, model_path, dtype=dtype)
        self._cache: OrderedDict[tuple[TokenIds, TokenIds], float] = OrderedDict()
        self._cache_size = config.references.cache_size

    def ready(self) -> bool:
        return True

    def load_weights(self, bundle: "WeightBundle") -> WeightReceipt:
        """Become the snapshot `bundle`, and forget every price. A WeightUpdateError is the end of its prices."""
        started = time.perf_counter()
        self._version = None
        self._cache.clear()
        checksum = self._model.load_weights(bundle)
        self._version = bundle.version
        return WeightReceipt(
            self._rank, bundle.version, checksum, time.perf_counter() - started, num_bytes=bundle.num_bytes
        )

    def price(self, *groups: Group, version: int = 0) -> tuple:
        """(cards, busy seconds, tokens computed) and then the groups with their reference log-probs.

        `version` is what the caller takes this reference for (0 = the initial model): RoleError when it is not.
        """
        started = time.perf_counter()
        if version != self._version:
            held = "unconfirmed weights" if self._version is None else f"v{self._version}"
            raise RoleError(f"asked for prices of v{version}, but it holds {held}", role="reference", rank=self._rank)
        unknown = [group for group in (self._unknown_part(group) for group in groups) if group is not None]
        for group, logprobs in zip(unknown, self._model.response_logprobs(unknown), strict=True):
            for response, logprob in zip(group.responses, logprobs, strict=True):
                self._remember((group.prompt.token_ids, response.token_ids), logprob)
        priced = [self._fill_in(group) for group in groups]
        self._trim()
        cards = [group.card() for group in priced]
        return (cards, time.perf_counter() - started, sum(group.num_tokens for group in unknown)), *priced

    def response_logprobs(self, groups: Sequence[Group]) -> list[list[float]]:
        """Straight from the model (LogprobEngine), nothing remembered: for the evaluation, which asks once."""
        return self._model.response_logprobs(groups)

    def _unknown_part(self, group: Group) -> Group | None:
        responses = tuple(
            response for response in group.responses if (group.prompt.token_ids, response.token_ids) not in self._cache
        )
        return replace(group, responses=responses) if responses else None

    def _fill_in(self, group: Group) -> Group:
        return replace(group, responses=tuple(self._priced(group, response) for response in group.responses))

    def _priced(self, group: Group, response: Response) -> Response:
        logprob = self._cache[group.prompt.token_ids, response.token_ids]
        return replace(response, ref_logprobs={**response.ref_logprobs, **dict.fromkeys(self._names, logprob)})

    def _remember(self, key: tuple[TokenIds, TokenIds], logprob: float) -> None:
        self._cache[key] = logprob
        self._cache.move_to_end(key)

    def _trim(self) -> None:
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)

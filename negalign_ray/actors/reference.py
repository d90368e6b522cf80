"""The reference role: a model that prices every response under the bare prompt, and remembers what it priced.

Frozen, unless `references.follow` is snapshot: then it becomes the policy's snapshot at every refresh (self-play).
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ray

from negalign_ray.actors.processes import open_log
from negalign_ray.config import Config
from negalign_ray.errors import RoleError
from negalign_ray.loops.prices import PriceMemory, Remembered, prices_of
from negalign_ray.records import Group, WeightReceipt

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
        self._memory = PriceMemory(max_prices=config.references.cache_size)

    def ready(self) -> bool:
        return True

    def load_weights(self, bundle: "WeightBundle") -> WeightReceipt:
        """Become the snapshot `bundle`, and forget every price. A WeightUpdateError is the end of its prices."""
        started = time.perf_counter()
        self._version = None
        self._memory.forget()
        checksum = self._model.load_weights(bundle)
        self._version = bundle.version
        return WeightReceipt(
            self._rank, bundle.version, checksum, time.perf_counter() - started, num_bytes=bundle.num_bytes
        )

    def price(self, *groups: Group, version: int = 0) -> tuple:
        """(cards, busy seconds, tokens computed, what was remembered) and then the groups with their log-probs.

        `version` is what the caller takes this reference for (0 = the initial model): RoleError when it is not.
        """
        started = time.perf_counter()
        if version != self._version:
            held = "unconfirmed weights" if self._version is None else f"v{self._version}"
            raise RoleError(f"asked for prices of v{version}, but it holds {held}", role="reference", rank=self._rank)
        priced = self._memory.price(groups, names=self._names, compute=self._model.response_logprobs)
        cards = [group.card() for group in priced.groups]
        counts = {"num_prices": priced.num_prices, "num_remembered": priced.num_remembered}
        return (cards, time.perf_counter() - started, priced.num_tokens, counts), *priced.groups

    def prices(self) -> Remembered:
        """What it remembers, for a checkpoint: priced again beside other responses, the last bits may differ."""
        return self._version, self._memory.entries()

    def remember(self, kept: Sequence[Remembered]) -> None:
        """Those of the weights that it holds; a checkpoint may have been written while snapshots changed."""
        self._memory.remember(prices_of(kept, version=self._version))

    def response_logprobs(self, groups: Sequence[Group]) -> list[list[float]]:
        """Straight from the model (LogprobEngine), nothing remembered: for the evaluation, which asks once."""
        return self._model.response_logprobs(groups)

    def response_entropies(self, groups: Sequence[Group]) -> list[list[float]]:
        """Likewise: of the next token, in nats, summed over each response."""
        return self._model.response_entropies(groups)

"""The sampler role: a Ray actor around one generation engine. It turns orders into groups and takes new weights."""

import logging
import time
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from negalign_ray.actors.processes import open_log
from negalign_ray.config import Config
from negalign_ray.engines.protocols import GenerationEngine, engine_class
from negalign_ray.engines.weight_transfer import device_uuid
from negalign_ray.errors import WeightUpdateError
from negalign_ray.loops.candidates import with_candidates
from negalign_ray.models.dtype import ComputeDtype
from negalign_ray.records import (
    Generation,
    Group,
    GroupCard,
    Order,
    Response,
    Role,
    SampleRequest,
    SamplingSpec,
    WeightReceipt,
)

if TYPE_CHECKING:
    from negalign_ray.engines.weight_transfer import Parcel
    from negalign_ray.engines.weights import Announced, WeightBundle

log = logging.getLogger(__name__)


@ray.remote
class Sampler:
    """Holds no state worth saving: the conductor can replace it at any time."""

    def __init__(
        self,
        config: Config,
        *,
        rank: int,
        model_path: str,
        dtype: ComputeDtype,
        stop_ids: tuple[int, ...],
        max_model_len: int,
        max_candidates: int = 0,
    ) -> None:
        open_log(config.run_dir, f"sampler-{rank}")
        self._rank, self._version, self._max_candidates = rank, 0, max_candidates
        self._spec = SamplingSpec(
            max_new_tokens=config.sampling.max_new_tokens,
            temperature=config.sampling.temperature,
            top_p=config.sampling.top_p,
        )
        self._engine: GenerationEngine = engine_class(config.samplers.engine)(
            Path(model_path),
            config=config.samplers,
            dtype=dtype,
            max_model_len=max_model_len,
            seed=config.run.seed + rank,
            stop_ids=stop_ids,
        )

    def ready(self) -> int:
        """Warms the engine up (the first call compiles and allocates) and returns the loaded weights' checksum."""
        self._engine.generate([SampleRequest(context_ids=(1, 2, 3), seed=0)], SamplingSpec(max_new_tokens=2))
        return self._engine.checksum()

    def sample(self, orders: Sequence[Order], *earlier: Group | None) -> tuple:
        """(cards, busy seconds, tokens written) and then one group per order, each an object of its own.

        `earlier` holds, order by order, the group whose newest answers stay candidates (see loops/candidates.py); none
        at all where no order has one.
        """
        started = time.perf_counter()
        groups, num_tokens = answer_orders(
            self._engine,
            orders,
            earlier,
            spec=self._spec,
            version=self._version,
            max_candidates=self._max_candidates,
        )
        cards: list[GroupCard] = [group.card() for group in groups]
        return (cards, time.perf_counter() - started, num_tokens), *groups

    def generate(self, requests: Sequence[SampleRequest], spec: SamplingSpec) -> list[Generation]:
        """Free-form generation for evaluation, by the weights loaded now."""
        return self._engine.generate(requests, spec)

    def load_weights(self, bundle: "WeightBundle") -> WeightReceipt:
        started = time.perf_counter()
        return self._receipt(self._engine.load_weights(bundle), bundle, bundle.num_bytes, started)

    def receive_weights(self, parcel: "Parcel", weights: list[Any]) -> WeightReceipt:
        """The update by NCCL or IPC; from the object store (`weights`: one reference) where IPC does not reach."""
        if parcel.offer.way == "ipc" and not parcel.offer.reaches(device_uuid()):
            log.warning("the learner is on another GPU: v%d comes from the object store", parcel.version)
            return self.load_weights(ray.get(weights[0]))
        started = time.perf_counter()
        receipt = self._receipt(self._engine.receive_weights(parcel), parcel, parcel.offer.num_bytes, started)
        log.info("v%d came by %s in %.2f s", parcel.version, parcel.offer.way, receipt.seconds)
        return receipt

    def sleep(self) -> None:
        self._engine.sleep()

    def _receipt(self, checksum: int, new: "Announced", num_bytes: int, started: float) -> WeightReceipt:
        if checksum != new.checksum:
            raise WeightUpdateError(
                f"loaded weights have checksum {checksum:016x}, the learner announced {new.checksum:016x} for "
                f"version {new.version}",
                role="sampler",
                rank=self._rank,
                weight_version=self._version,
            )
        self._version = new.version
        return WeightReceipt(self._rank, new.version, checksum, time.perf_counter() - started, num_bytes)


def answer_orders(
    engine: GenerationEngine,
    orders: Sequence[Order],
    earlier: Sequence[Group | None],
    *,
    spec: SamplingSpec,
    version: int,
    max_candidates: int,
) -> tuple[list[Group], int]:
    """One group per order, and the tokens written for all of them: those of empty and repeated answers too."""
    generations = engine.generate([request for order in orders for request in order.requests], spec)
    answers = iter(generations)
    groups = [_as_group(order, [next(answers) for _ in order.requests], version=version) for order in orders]
    groups = [
        with_candidates(group, before, max_candidates=max_candidates) for group, before in zip_longest(groups, earlier)
    ]
    return groups, sum(len(generation.token_ids) for generation in generations)


def _as_group(order: Order, generations: Sequence[Generation], *, version: int) -> Group:
    """The human responses, then every distinct, non-empty sample (an empty or repeated one teaches nothing, and one
    that is a human negative word for word would be held up and pushed down at once)."""
    negatives = {response.token_ids for response in order.prompt.responses if response.role is Role.NEGATIVE}
    samples: dict[tuple[int, ...], Response] = {}
    for request, generation in zip(order.requests, generations, strict=True):
        if generation.text.strip() and generation.token_ids not in samples and generation.token_ids not in negatives:
            samples[generation.token_ids] = Response(
                role=Role.SAMPLE,
                token_ids=generation.token_ids,
                text=generation.text,
                instruction=request.instruction,
                polarity=request.polarity,
                context_ids=request.context_ids,
                weight_version=version,
                finish_reason=generation.finish_reason,
                sampler_logprobs=generation.logprobs,
            )
    return Group(order.order_id, order.prompt, (*order.prompt.responses, *samples.values()))

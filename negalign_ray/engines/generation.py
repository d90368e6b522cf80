"""What both generation engines share: requests without room are refused, and so is every answer of unproved weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from negalign_ray.config import SamplersConfig
from negalign_ray.engines.weight_transfer import Parcel
from negalign_ray.engines.weights import Announced, WeightBundle
from negalign_ray.errors import RoleError, WeightUpdateError
from negalign_ray.models.dtype import ComputeDtype
from negalign_ray.records import Generation, SampleRequest, SamplingSpec

MAX_SEED = 2**63 - 1  # generators take signed 64-bit seeds
TORCH_DTYPE = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class CheckedEngine(ABC):
    """GenerationEngine (engines/protocols.py) around `_answer`, `_load` and `checksum` of a library.

    `model_path` is a folder with safetensors; `stop_ids` are the token ids that end an answer (it keeps the one that
    ended it); `max_model_len` bounds context + answer.
    """

    def __init__(
        self,
        model_path: Path | str,
        *,
        config: SamplersConfig,
        dtype: ComputeDtype,
        max_model_len: int,
        seed: int,
        stop_ids: Sequence[int],
    ):
        self._dtype, self._max_model_len = TORCH_DTYPE[dtype], max_model_len
        self._stop_ids = frozenset(stop_ids)
        self._version: int | None = None  # None: the weights that came with the model
        self._broken: str | None = None  # why these weights must not be used
        self._start(Path(model_path), config, dtype=dtype, seed=seed)

    def generate(self, requests: Sequence[SampleRequest], spec: SamplingSpec) -> list[Generation]:
        """See the Protocol. Log-probs are the model's own (temperature 1, before top-p), whatever `spec` says.

        Raises RoleError when a context leaves no room for `spec.max_new_tokens`, and WeightUpdateError after a failed
        update: mixed weights never answer.
        """
        if self._broken:
            raise WeightUpdateError(self._broken, role="sampler", weight_version=self._version)
        self._require_room(requests, spec)
        return self._answer(requests, spec)

    def load_weights(self, bundle: WeightBundle) -> int:
        """See the Protocol. Raises WeightUpdateError, and answers no more calls, unless every byte is confirmed."""
        return self._update(bundle, self._load)

    def receive_weights(self, parcel: Parcel) -> int:
        """`load_weights` for weights that come by NCCL or IPC (engines/weight_transfer.py)."""
        return self._update(parcel, self._receive)

    def sleep(self) -> None:
        """Give device memory back, weights included: nothing is answered before new ones are loaded."""
        self._fall_asleep()
        self._broken = "its weights were given up when it went to sleep, and no new ones came; replace this sampler."

    def _update(self, new: Announced, load: Callable[..., int]) -> int:
        before, self._version = self._version, new.version
        self._broken = f"the update to v{new.version} did not finish; replace this sampler."
        try:
            loaded = load(new, before=before)
        except WeightUpdateError as error:
            self._broken = error.reason
            raise
        self._broken = None
        return loaded

    def _receive(self, parcel: Parcel, *, before: int | None) -> int:
        """As `_load`."""
        raise NotImplementedError("checked with the settings: vLLM alone has other ways than the object store")

    def _fall_asleep(self) -> None:
        raise NotImplementedError("checked with the settings: vLLM alone can sleep")

    @abstractmethod
    def checksum(self) -> int:
        """See the Protocol."""

    @abstractmethod
    def _start(self, model_path: Path, config: SamplersConfig, *, dtype: ComputeDtype, seed: int) -> None:
        """Load the model. Raises ModelError."""

    @abstractmethod
    def _answer(self, requests: Sequence[SampleRequest], spec: SamplingSpec) -> list[Generation]:
        """One generation per request, in order."""

    @abstractmethod
    def _load(self, bundle: WeightBundle, *, before: int | None) -> int:
        """Load all tensors in place and return the confirmed checksum. Raises WeightUpdateError (role sampler)."""

    def _require_room(self, requests: Sequence[SampleRequest], spec: SamplingSpec) -> None:
        longest = max((len(request.context_ids) for request in requests), default=0)
        if longest + spec.max_new_tokens > self._max_model_len:
            raise RoleError(
                f"a context of {longest} tokens + sampling.max_new_tokens={spec.max_new_tokens} exceeds the engine's "
                f"{self._max_model_len} tokens; lower data.max_prompt_tokens or sampling.max_new_tokens, or shorten "
                "the instructions.",
                role="sampler",
                weight_version=self._version,
            )

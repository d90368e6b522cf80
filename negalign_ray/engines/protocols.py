"""The engines as actors, loops and evaluation see them. Tests hand in small fakes; no heavy library is imported here.

# Axes: N = responses in a call, in the order (group 0 response 0, group 0 response 1, ...).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from negalign_ray.records import Generation, Group, SampleRequest, SamplingSpec

if TYPE_CHECKING:
    from negalign_ray.engines.generation import CheckedEngine
    from negalign_ray.engines.weight_transfer import Parcel
    from negalign_ray.engines.weights import WeightBundle


class GenerationEngine(Protocol):
    """Writes answers: vLLM, or `transformers` where vLLM is not installed."""

    def generate(self, requests: Sequence[SampleRequest], spec: SamplingSpec) -> list[Generation]:
        """One generation per request, in order; the same request, spec and weights give the same tokens."""

    def load_weights(self, bundle: "WeightBundle") -> int:
        """Load all tensors in place, drop caches that depend on them, and return the checksum read back from the
        loaded memory."""

    def receive_weights(self, parcel: "Parcel") -> int:
        """`load_weights` for weights that come by NCCL or IPC."""

    def sleep(self) -> None:
        """Give device memory back, until the next weights are loaded."""

    def checksum(self) -> int:
        """Checksum of the weights that the next `generate` will use."""


class LogprobEngine(Protocol):
    """A model that prices responses under the bare prompt and is never trained itself."""

    def response_logprobs(self, groups: Sequence[Group]) -> list[list[float]]:
        """Summed response log-probs, one list per group in the order of its responses."""

    def load_weights(self, bundle: "WeightBundle") -> int:
        """Become the model of `bundle`, and return the checksum read back from the loaded memory."""


def engine_class(name: Literal["transformers", "vllm"]) -> "type[CheckedEngine]":
    """The GenerationEngine of that library, which is imported only here."""
    if name == "vllm":
        from negalign_ray.engines.vllm_engine import VllmEngine

        return VllmEngine
    from negalign_ray.engines.transformers_engine import TransformersEngine

    return TransformersEngine

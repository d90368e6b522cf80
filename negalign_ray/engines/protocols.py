"""The engines as actors, loops and evaluation see them. Tests hand in small fakes; no heavy library is imported here.

# Axes: N = responses in a call, in the order (group 0 response 0, group 0 response 1, ...).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from negalign_ray.records import Generation, Group, SampleRequest, SamplingSpec

if TYPE_CHECKING:
    from negalign_ray.engines.weights import WeightBundle


class GenerationEngine(Protocol):
    """Writes answers: vLLM, or `transformers` where vLLM is not installed."""

    def generate(self, requests: Sequence[SampleRequest], spec: SamplingSpec) -> list[Generation]:
        """One generation per request, in order; the same request, spec and weights give the same tokens."""

    def load_weights(self, bundle: "WeightBundle") -> int:
        """Load all tensors in place, drop caches that depend on them, and return the checksum read back from the
        loaded memory."""

    def checksum(self) -> int:
        """Checksum of the weights that the next `generate` will use."""


class LogprobEngine(Protocol):
    """A frozen model that prices responses under the bare prompt."""

    def response_logprobs(self, groups: Sequence[Group]) -> list[list[float]]:
        """Summed response log-probs, one list per group in the order of its responses."""

"""What the two loops need from the roles. The actors implement these; tests hand in small fakes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor

from negalign_ray.loops.buffer import Handle
from negalign_ray.records import Group, Order, WeightReceipt


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a role made of a wave, and the seconds it was busy with it (queueing and transport left out)."""

    handles: tuple[Handle, ...]
    busy_s: float
    num_tokens: int = 0  # written (sampler) or computed (reference, guide)
    num_prices: int = 0  # reference: log-probs asked for, one per response and reference model
    num_remembered: int = 0  # reference: of these, the ones that needed no computing
    figures: Mapping[str, float] = field(default_factory=dict)  # metrics of the stage itself (guide), by key

    def behind(self, earlier: "StageResult") -> "StageResult":
        """The groups as they are now, with the work of both stages."""
        return replace(
            self,
            busy_s=earlier.busy_s + self.busy_s,
            num_tokens=earlier.num_tokens + self.num_tokens,
            num_prices=earlier.num_prices + self.num_prices,
            num_remembered=earlier.num_remembered + self.num_remembered,
        )


class Offer(Protocol):
    """Another way of new weights than the object store, where they are all the same."""

    @property
    def together(self) -> bool:
        """All samplers take part at once, and each must be free."""


class Fleet(Protocol):
    """Samplers, scorers and references as the rollout loop sees them. Failures arrive as RoleError."""

    num_samplers: int  # at the start: ranks 0, 1, ...

    async def sample(self, rank: int, orders: Sequence[Order]) -> StageResult:
        """Answer the orders; an order with `earlier` (a handle) also gets the newest answers of that group."""

    async def hold(self, groups: Sequence[Group]) -> StageResult:
        """Put groups of human responses where the other roles can read them (methods without samples)."""

    async def score(self, handles: Sequence[Handle]) -> StageResult:
        """Fill in rewards; apply the reward gate to the samples."""

    async def price(self, handles: Sequence[Handle]) -> StageResult:
        """Fill in the references' log-probs."""

    async def follow(self, weights: Any, version: int) -> float:
        """Every reference loads and confirms these weights and prices with them from now on; one that fails is
        replaced at them. Returns the seconds of the slowest."""

    async def guide(self, handles: Sequence[Handle]) -> StageResult:
        """Fit the guide on all groups of an iteration and fill in the samples' latent distances."""

    async def load_weights(self, rank: int, weights: Any, version: int) -> WeightReceipt: ...

    async def receive_weights(self, rank: int, offer: Offer, weights: Any, version: int) -> WeightReceipt:
        """`load_weights` by the offer; `weights` for a sampler that it does not reach."""

    def meet(self, ranks: Sequence[int], offer: Offer) -> None:
        """Those samplers are about to load by an offer that all take together."""

    async def sleep(self, rank: int) -> None:
        """The sampler gives its device's memory back until it loads weights again."""

    async def remembered(self) -> dict[str, Any]:
        """What the roles remember and a repeated computation would give only up to rounding (prices of references), as
        JSON holds it."""

    async def remember(self, state: Mapping[str, Any]) -> None:
        """Take up what `remembered` told before the run was interrupted."""

    async def replace_sampler(self, rank: int, weights: Any, version: int) -> None:
        """Start a new sampler in place of a failed one, at the given weights (None = the initial model)."""

    async def add_sampler(self, rank: int) -> None:
        """Start one more sampler, at the initial model. PlacementError when there is no room for it."""

    async def remove_sampler(self, rank: int) -> None:
        """End a sampler, whatever it is doing, and give back what it reserved; also one that never came up."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One optimizer step as every rank sees it: all groups, by reference, in the same order."""

    step: int
    handles: tuple[Handle, ...]


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one rank says about a step. Sums and counts, so that merging ranks needs no collective."""

    step: int
    rank: int
    sums: dict[str, float]
    counts: dict[str, int]
    values: dict[str, float] = field(default_factory=dict)  # equal on all ranks (lr), or the slowest counts (seconds)


class BatchSource(Protocol):
    """The conductor as a learner rank sees it."""

    def pull(self, step: int) -> Batch | None:
        """Waits for the batch of `step`; None = the run was asked to stop. Raises the rollout's fatal error."""

    def fetch(self, handles: Sequence[Handle]) -> list[Group]: ...

    def publish(self, version: int, tensors: list[tuple[str, Tensor]]) -> None:
        """Rank 0 hands over new weights; returns as soon as they are copied."""

    def report(self, report: StepReport) -> None: ...


class Learner(Protocol):
    """The policy being trained, sharded over ranks. Every method is collective: all ranks call it together."""

    def logprobs(self, groups: Sequence[Group]) -> Tensor: ...

    def logprobs_and_complements(self, groups: Sequence[Group]) -> tuple[Tensor, Tensor]: ...

    def no_grad_token_logprobs(self, groups: Sequence[Group]) -> list[Tensor]: ...

    def backward(self, loss: Tensor, *, is_last: bool) -> None: ...

    def step(self) -> "StepStats": ...

    def gather_weights(self) -> list[tuple[str, Tensor]]: ...


class StepStats(Protocol):
    @property
    def grad_norm(self) -> float: ...

    @property
    def lr(self) -> float: ...

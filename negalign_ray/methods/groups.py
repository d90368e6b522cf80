"""What every loss reads and returns: log-prob tensors of groups of responses, never a model or a token.

# Axes: G = groups (prompts) in this micro-batch, R = responses per group, padded to the longest group,
#       N = responses of all groups in order (group 0 response 0, group 0 response 1, ...).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from negalign_ray.errors import MissingReferenceError
from negalign_ray.records import Group, GroupCard, Polarity, Response, ResponseCard, Role


@dataclass(frozen=True)
class RewardSource:
    """Which head's scores a method trains on; `sign` -1 turns a harm score into a reward."""

    head: str
    sign: float = 1.0

    def of(self, response: Response | ResponseCard) -> float:
        """NaN where that head gave no score."""
        return self.sign * response.rewards.get(self.head, float("nan"))


@dataclass(frozen=True)
class GroupTensors:
    """Per-response quantities of a micro-batch. Padding: every role mask False, log-probs 0, lengths 1.

    All `*logprobs` are float32 natural logs summed over response tokens (end-of-turn included) under the bare prompt.
    """

    logprobs_GR: Tensor  # policy; carries the gradient
    complement_logprobs_GR: Tensor  # SUM_t log(1 - p(y_t)), policy, with gradient; NaN unless Needs.complements
    lengths_GR: Tensor  # response tokens, int64
    rpos_logprobs_GR: Tensor  # more helpful reference
    rneg_logprobs_GR: Tensor  # more harmful reference (often the same model)
    is_negative_GR: Tensor  # bool: human negatives
    is_positive_GR: Tensor  # bool: human positives
    is_sample_GR: Tensor  # bool: self-generated answers
    is_positive_sample_GR: Tensor  # bool: the samples asked for under a positive instruction
    is_negative_sample_GR: Tensor  # bool: the samples asked for under a negative instruction
    is_carried_GR: Tensor  # bool: the samples that an older policy wrote in an earlier round
    reward_GR: Tensor  # what the method trains on (higher = better), float32; NaN where not scored
    batch_rewards: tuple[tuple[float, ...], ...] = ()  # the same of EVERY group of the optimizer step, for batch means

    @property
    def mask_GR(self) -> Tensor:
        return self.is_negative_GR | self.is_positive_GR | self.is_sample_GR


@dataclass(frozen=True)
class LossOutput:
    """Unreduced: one loss and one value of each metric per group. The learner alone divides by the global count."""

    loss_G: Tensor
    metrics_G: dict[str, Tensor]  # detached; NaN = does not apply to this group (left out of the mean)


def masked_mean(values_GR: Tensor, mask_GR: Tensor) -> Tensor:
    """Mean over R of the masked entries -> [G]; 0 where nothing is masked in (with zero gradient)."""
    # where(), not multiply: 0 * inf is nan, and one nan poisons the batch.
    total_G = torch.where(mask_GR, values_GR, values_GR.new_zeros(())).sum(-1)
    return total_G / mask_GR.sum(-1).clamp(min=1)


def metric_mean(values_GR: Tensor, mask_GR: Tensor) -> Tensor:
    """`masked_mean` for metrics -> [G]: detached, and NaN (does not apply) where nothing is masked in."""
    return masked_mean(values_GR.detach(), mask_GR).masked_fill(~mask_GR.any(-1), float("nan"))


def log_ratio(logprobs_GR: Tensor, ref_logprobs_GR: Tensor, mask_GR: Tensor) -> Tensor:
    """log pi_th(y|x) - log pi_ref(y|x) in nats -> [G, R]; 0 with zero gradient outside the mask."""
    # Both sides are cleaned before any arithmetic: a nan born in the forward pass comes back as 0 * nan in backward.
    zero = logprobs_GR.new_zeros(())
    return torch.where(mask_GR, logprobs_GR, zero) - torch.where(mask_GR, ref_logprobs_GR, zero)


def per_token(sums_GR: Tensor, groups: GroupTensors) -> Tensor:
    """Sums over a response's tokens -> their means [G, R]."""
    return sums_GR / groups.lengths_GR.clamp(min=1)  # clamp: 0 / 0 in a masked cell would come back in backward


def neg_log_sigmoid(logit: Tensor) -> Tensor:
    """`sp(z) = -log sigmoid(z)` of METHODS, any shape; finite with gradient in [-1, 0] for every finite z."""
    # Not F.softplus(-z): it turns linear above 20, and that step of 2e-9 is not convex (D4 would fail in float64).
    return -F.logsigmoid(logit)


def build_group_tensors(
    groups: Sequence[Group],
    logprobs_N: Tensor,
    *,
    complements_N: Tensor | None = None,
    references: bool = True,
    reward: RewardSource | None = None,
    batch: Sequence[GroupCard] = (),
) -> GroupTensors:
    """Lay N summed log-probs out as [G, R], differentiably, beside what the groups' responses say of themselves.

        groups with 2 and 3 responses, logprobs_N = [a, b, c, d, e]  ->  [[a, b, 0], [c, d, e]]

    `logprobs_N` [N] is float32 or float64 (a lower precision is raised to float32); the result lives on its device.
    `complements_N` is laid out in the same way. `references=False` is for methods that need none: absent reference
    log-probs become 0. Otherwise a response without both "rpos" and "rneg" raises MissingReferenceError. `reward` is
    what the method trains on, `batch` the cards of all groups of the optimizer step, on whichever rank (some methods
    divide by what the whole batch holds). No groups at all give tensors [0, 0] that still belong to the graph of
    `logprobs_N`, so that a rank with an empty share can take part in backward.
    """
    cells = [(g, r) for g, group in enumerate(groups) for r in range(len(group.responses))]
    responses_N = [response for group in groups for response in group.responses]
    assert logprobs_N.shape == (len(cells),), f"{tuple(logprobs_N.shape)} log-probs for {len(cells)} responses"
    if references:
        _require_references(groups)
    device, dtype = logprobs_N.device, torch.promote_types(logprobs_N.dtype, torch.float32)
    shape_GR = (len(groups), max((len(group.responses) for group in groups), default=0))
    cells_N2 = torch.tensor(cells, dtype=torch.long, device=device).reshape(-1, 2)

    def lay_out(values_N: Tensor, fill: float) -> Tensor:
        blank_GR = torch.full(shape_GR, fill, dtype=values_N.dtype, device=device)
        return blank_GR.index_put((cells_N2[:, 0], cells_N2[:, 1]), values_N)

    def floats(values: Iterable[float]) -> Tensor:
        return torch.tensor(list(values), dtype=dtype, device=device)

    def where(chosen: Callable[[Response], bool]) -> Tensor:
        return lay_out(torch.tensor([chosen(r) for r in responses_N], dtype=torch.bool, device=device), False)

    source = reward or RewardSource(head="")
    if complements_N is None:
        complements_N = torch.full_like(logprobs_N, float("nan"))

    lengths_N = torch.tensor([len(r.token_ids) for r in responses_N], dtype=torch.long, device=device)
    return GroupTensors(
        logprobs_GR=lay_out(logprobs_N.to(dtype), 0.0),
        complement_logprobs_GR=lay_out(complements_N.to(dtype), 0.0),
        lengths_GR=lay_out(lengths_N, 1),
        rpos_logprobs_GR=lay_out(floats(r.ref_logprobs.get("rpos", 0.0) for r in responses_N), 0.0),
        rneg_logprobs_GR=lay_out(floats(r.ref_logprobs.get("rneg", 0.0) for r in responses_N), 0.0),
        is_negative_GR=where(lambda r: r.role is Role.NEGATIVE),
        is_positive_GR=where(lambda r: r.role is Role.POSITIVE),
        is_sample_GR=where(lambda r: r.role is Role.SAMPLE),
        is_positive_sample_GR=where(lambda r: r.polarity is Polarity.POSITIVE),
        is_negative_sample_GR=where(lambda r: r.polarity is Polarity.NEGATIVE),
        is_carried_GR=where(lambda r: r.carried),
        reward_GR=lay_out(floats(map(source.of, responses_N)), float("nan")),
        batch_rewards=tuple(tuple(map(source.of, card.responses)) for card in batch),
    )


def _require_references(groups: Sequence[Group]) -> None:
    for group in groups:
        for index, response in enumerate(group.responses):
            absent = [name for name in ("rpos", "rneg") if name not in response.ref_logprobs]
            if absent:
                raise MissingReferenceError(
                    f"order {group.order_id}, prompt {group.prompt.prompt_id}, response {index} ({response.role}): no "
                    f"reference log-prob {' or '.join(absent)} (found: {sorted(response.ref_logprobs) or 'none'}). The "
                    f"reference role must price every response; a method without references passes references=False."
                )

"""What every loss reads and returns: log-prob tensors of groups of responses, never a model or a token.

# Axes: G = groups (prompts) in this micro-batch, R = responses per group, padded to the longest group,
#       N = responses of all groups in order (group 0 response 0, group 0 response 1, ...).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from negalign_ray.errors import MissingReferenceError
from negalign_ray.records import Group, Response, Role


@dataclass(frozen=True)
class GroupTensors:
    """Per-response quantities of a micro-batch. Padding: every role mask False, log-probs 0, lengths 1.

    All `*logprobs` are float32 natural logs summed over response tokens (end-of-turn included) under the bare prompt.
    """

    logprobs_GR: Tensor  # policy; carries the gradient
    lengths_GR: Tensor  # response tokens, int64
    rpos_logprobs_GR: Tensor  # more helpful reference
    rneg_logprobs_GR: Tensor  # more harmful reference (often the same model)
    is_negative_GR: Tensor  # bool: human negatives
    is_positive_GR: Tensor  # bool: human positives
    is_sample_GR: Tensor  # bool: self-generated answers
    rewards_GR: dict[str, Tensor] = field(default_factory=dict)  # head -> raw score, NaN where not scored

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


def neg_log_sigmoid(logit: Tensor) -> Tensor:
    """`sp(z) = -log sigmoid(z)` of METHODS, any shape; finite with gradient in [-1, 0] for every finite z."""
    # Not F.softplus(-z): it turns linear above 20, and that step of 2e-9 is not convex (D4 would fail in float64).
    return -F.logsigmoid(logit)


def build_group_tensors(groups: Sequence[Group], logprobs_N: Tensor, *, references: bool = True) -> GroupTensors:
    """Lay N summed log-probs out as [G, R], differentiably, beside what the groups' responses say of themselves.

        groups with 2 and 3 responses, logprobs_N = [a, b, c, d, e]  ->  [[a, b, 0], [c, d, e]]

    `logprobs_N` [N] is float32 or float64 (a lower precision is raised to float32); the result lives on its device.
    `references=False` is for methods that need none: absent reference log-probs become 0. Otherwise a response without
    both "rpos" and "rneg" raises MissingReferenceError. No groups at all give tensors [0, 0] that still belong to the
    graph of `logprobs_N`, so that a rank with an empty share can take part in backward.
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

    def has_role(role: Role) -> Tensor:
        return lay_out(torch.tensor([r.role == role for r in responses_N], dtype=torch.bool, device=device), False)

    lengths_N = torch.tensor([len(r.token_ids) for r in responses_N], dtype=torch.long, device=device)
    return GroupTensors(
        logprobs_GR=lay_out(logprobs_N.to(dtype), 0.0),
        lengths_GR=lay_out(lengths_N, 1),
        rpos_logprobs_GR=lay_out(floats(r.ref_logprobs.get("rpos", 0.0) for r in responses_N), 0.0),
        rneg_logprobs_GR=lay_out(floats(r.ref_logprobs.get("rneg", 0.0) for r in responses_N), 0.0),
        is_negative_GR=has_role(Role.NEGATIVE),
        is_positive_GR=has_role(Role.POSITIVE),
        is_sample_GR=has_role(Role.SAMPLE),
        rewards_GR={
            head: lay_out(floats(r.rewards.get(head, float("nan")) for r in responses_N), float("nan"))
            for head in _heads_of(responses_N)
        },
    )


def _heads_of(responses: Sequence[Response]) -> list[str]:
    return sorted({head for response in responses for head in response.rewards})


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

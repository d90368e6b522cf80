"""What every loss reads and returns: log-prob tensors of groups of responses, never a model or a token.

# Axes: G = groups (prompts) in this micro-batch, R = responses per group, padded to the longest group.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


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

"""A group's responses in the order of their rewards: what the methods that rank candidates (CLHA, PRO) share.

# Axes: G = groups (prompts), R = responses per group, padded; here in the order of rewards.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from negalign_ray.methods.groups import GroupTensors, log_ratio, masked_mean, metric_mean, per_token


@dataclass(frozen=True)
class Candidates:
    """Scored responses, best first. What is no candidate (padding, no reward) stands behind them: masked out, and 0."""

    mask_GR: Tensor  # bool
    rewards_GR: Tensor
    logprobs_GR: Tensor  # with gradient
    nlp_GR: Tensor  # log-prob per token, with gradient

    @property
    def num_G(self) -> Tensor:
        """n, the number of candidates, in the number type of the log-probs."""
        return self.mask_GR.sum(-1).to(self.nlp_GR.dtype)

    @property
    def is_best_GR(self) -> Tensor:
        """bool: y_1, the first of them."""
        first_GR = torch.zeros_like(self.mask_GR)
        first_GR[:, :1] = True  # a slice: R may be 0
        return self.mask_GR & first_GR

    @property
    def best_G(self) -> Tensor:
        """lp(y_1) with gradient; 0 for a group without candidates."""
        return masked_mean(self.logprobs_GR, self.is_best_GR)

    def ranked_pairs_frac(self) -> Tensor:
        """Share of the pairs of different reward that the policy ranks as their rewards do -> [G]."""
        both_GRR = self.mask_GR.unsqueeze(-1) & self.mask_GR.unsqueeze(-2)
        better_GRR = both_GRR & (self.rewards_GR.unsqueeze(-1) > self.rewards_GR.unsqueeze(-2))
        likelier_GRR = self.nlp_GR.detach().unsqueeze(-1) > self.nlp_GR.detach().unsqueeze(-2)
        return metric_mean(likelier_GRR.float().flatten(-2), better_GRR.flatten(-2))

    def best_token_nll(self) -> Tensor:
        """-lp(y_1) / |y_1| -> [G], for metrics."""
        return metric_mean(-self.nlp_GR, self.is_best_GR)


def in_order_of_reward(groups: GroupTensors) -> Candidates:
    """The responses that have a reward, best first; equal rewards stay in the order of the group."""
    scored_GR = groups.mask_GR & ~groups.reward_GR.isnan()
    rewards_GR, order_GR = best_first(torch.where(scored_GR, groups.reward_GR, torch.nan))
    lp_GR = log_ratio(groups.logprobs_GR, groups.logprobs_GR.new_zeros(()), scored_GR)
    return Candidates(
        mask_GR=scored_GR.gather(-1, order_GR),
        rewards_GR=rewards_GR.nan_to_num(0.0),
        logprobs_GR=lp_GR.gather(-1, order_GR),
        nlp_GR=per_token(lp_GR, groups).gather(-1, order_GR),
    )


def best_first(rewards_GR: Tensor) -> tuple[Tensor, Tensor]:
    """Rewards in descending order, NaN last, and where they were, both [G, R]."""
    order_GR = rewards_GR.nan_to_num(nan=-torch.inf).argsort(dim=-1, descending=True, stable=True)
    return rewards_GR.gather(-1, order_GR), order_GR

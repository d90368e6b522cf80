"""CLHA, contrastive learning for human alignment (arXiv 2403.16649), as its official code has it.

Every candidate is scored by the reward model (reward rescoring) and the list is sorted by that score: "best" is the
highest reward, whatever the human label said.

# Axes: G = groups (prompts) in this micro-batch, B = groups of the whole optimizer step, R = responses per group,
#       padded and in the order of rewards; P = pairs (k, k + i) of one distance i.
"""

import torch
from torch import Tensor

from negalign_ray.config import CLHAConfig
from negalign_ray.methods.candidates import best_first, in_order_of_reward
from negalign_ray.methods.groups import GroupTensors, LossOutput


def loss(groups: GroupTensors, config: CLHAConfig) -> LossOutput:
    """`L_rank + L_sft` -> loss [G], whose mean over the B groups of the step is the paper's loss; p = lp / |y|.

        L_rank = SUM_{i=1..n-1} [ SUM_{batch,k} M max(0, m*i - (p_k - p_{k+i})) ] / SUM M,  M = 1[ |r_k - r_{k+i}| > m ]
        L_sft  = lam (n-1)^2 mean_batch( -lp(y_1) 1[r_1 > 0] )

        m = 3, lam = 0.05, one group, r = (4, 0), p = (-1, -2), 2 tokens each
            ->  M = 1, rank 3 - 1 = 2, SFT 0.05 * 1 * 2 = 0.1, loss 2.1

    SUM M runs over `groups.batch_rewards`, all groups of the optimizer step: neither sharding nor micro-batches change
    the loss. Where it is 0 the distance has no term. Groups with r_1 <= 0 stay in the mean of L_sft.

    Departures. The code sums over the batch of one device, here over the whole step. [choice] Groups of different size
    (the code has one n): each has its own n in L_sft and takes part in the distances that it has. [choice] The reward
    above which L_sft is on is a setting, `sft_min_reward`, 0 as in the code: a head that is never positive (minus a
    probability of harm) would switch the term off for good. Equal rewards stay in the order of the group. A response
    without a reward is not read.

    Metrics, one value per group:
        rank_nats               its part of L_rank, times B
        sft_nats                its part of L_sft, times B
        eligible_pairs_frac     share of pairs whose rewards differ by more than m; at 0 this is SFT
        active_pairs_frac       of those, the ones inside the hinge
        ranked_pairs_frac       share of pairs that the policy ranks as the rewards do
        best_token_nll_nats     -p_1
        sft_frac                1 where L_sft is on
    """
    candidates = in_order_of_reward(groups)
    num_groups = len(groups.batch_rewards)
    assert num_groups >= len(groups.reward_GR), (
        "CLHA divides by what the whole step holds: give the cards of its groups"
    )
    batch_BR, _ = best_first(_padded(groups.batch_rewards, like=groups.reward_GR))
    rewards_GR = candidates.rewards_GR.masked_fill(~candidates.mask_GR, torch.nan)

    rank_G = candidates.nlp_GR.new_zeros(len(rewards_GR))
    num_pairs_G, num_eligible_G, num_active_G = (torch.zeros_like(rank_G) for _ in range(3))
    for distance in range(1, rewards_GR.shape[-1]):
        eligible_GP = _gap(rewards_GR, distance) > config.margin  # False where either has no reward
        hinge_GP = (config.margin * distance - _drop(candidates.nlp_GR, distance)).relu()
        hinge_GP = torch.where(eligible_GP, hinge_GP, hinge_GP.new_zeros(()))
        in_batch = (_gap(batch_BR, distance) > config.margin).sum().clamp(min=1)
        rank_G = rank_G + num_groups * hinge_GP.sum(-1) / in_batch
        num_pairs_G += (~_gap(rewards_GR, distance).isnan()).sum(-1)
        num_eligible_G += eligible_GP.sum(-1)
        num_active_G += (hinge_GP.detach() > 0).sum(-1)

    has_best_G = candidates.num_G > 0
    is_good_G = has_best_G & (candidates.rewards_GR[:, :1].sum(-1) > config.sft_min_reward)
    sft_G = -config.sft_weight * (candidates.num_G - 1) ** 2 * torch.where(is_good_G, candidates.best_G, 0.0)
    nan = rank_G.new_full((), torch.nan)

    return LossOutput(
        loss_G=rank_G + sft_G,
        metrics_G={
            "rank_nats": torch.where(num_pairs_G > 0, rank_G.detach(), nan),
            "sft_nats": torch.where(has_best_G, sft_G.detach(), nan),
            "eligible_pairs_frac": num_eligible_G / torch.where(num_pairs_G > 0, num_pairs_G, nan),
            "active_pairs_frac": num_active_G / torch.where(num_eligible_G > 0, num_eligible_G, nan),
            "ranked_pairs_frac": candidates.ranked_pairs_frac(),
            "best_token_nll_nats": candidates.best_token_nll(),
            "sft_frac": torch.where(has_best_G, is_good_G.to(rank_G.dtype), nan),
        },
    )


def _drop(sorted_GR: Tensor, distance: int) -> Tensor:
    """Value k minus value k + distance -> [G, P]."""
    return sorted_GR[:, :-distance] - sorted_GR[:, distance:]


def _gap(sorted_GR: Tensor, distance: int) -> Tensor:
    return _drop(sorted_GR, distance).abs()


def _padded(rewards: tuple[tuple[float, ...], ...], *, like: Tensor) -> Tensor:
    """Ragged rows -> [B, R] of the number type of `like`, so that both sides round a gap in the same way."""
    width = max(max(map(len, rewards), default=0), like.shape[-1])
    rows = [[*row, *[float("nan")] * (width - len(row))] for row in rewards]
    return torch.tensor(rows, dtype=like.dtype, device=like.device).reshape(len(rewards), width)

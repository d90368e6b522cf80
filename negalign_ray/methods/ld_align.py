"""LD-Align, latent-distance-guided alignment (arXiv 2404.06390): self-play DPO, each pair weighted by a distance.

# Axes: G = groups (prompts), R = responses per group, padded; P = pairs of a group, see methods/pairs.py.
"""

import math

import torch
from torch import Tensor

from negalign_ray.config import LDAlignConfig
from negalign_ray.methods.dpo import preference_loss
from negalign_ray.methods.groups import GroupTensors, LossOutput, metric_mean
from negalign_ray.methods.pairs import Pairs


def loss(groups: GroupTensors, config: LDAlignConfig) -> LossOutput:
    """`w sp( b [(lp - lp_ref)(y) - (lp - lp_ref)(y')] )` -> loss [G]; y a human positive, y' an own sample.

        b = 0.1, log-ratios: y +2, y' -3, distance 3 where the batch has 3 and 1  ->  1.5 * 0.4741 = 0.7112

    `reward_GR` holds the latent distance s = || phi(x,y) - phi(x,y') ||_2 of each sample (models/guide.py): far from
    the human answer = badly aligned = more weight. `weight_mode` [choice]:

        normalised   w = s / mean of s over the WHOLE batch of the step, clipped to [0, max_weight]
        raw          w = s, clipped alike
        constant     w = 1: an iteration of SPIN, without a guide

    The mean is over every group of the optimizer step (`batch_rewards`), so sharding cannot change it. It is taken
    before the clipping. A batch whose distances are all 0 gets w = 1 [choice]. Weights are plain numbers: no gradient
    reaches the guide. Departures: [choice] several positives: s of a sample is its mean distance to them, and the loss
    the mean over all pairs. A sample without a distance is left out, a group without a pair contributes 0; human
    negatives are not read. The reference is rpos: with `references.follow` = snapshot the policy that wrote y'.

    Metrics: those of DPO (the losers are the samples), and
        distance           mean s of the group's samples
        distance_weight    mean w of them
    """
    constant = config.weight_mode == "constant"
    loser_GR = groups.is_sample_GR if constant else groups.is_sample_GR & groups.reward_GR.isfinite()
    pairs = Pairs.of(groups.is_positive_GR, loser_GR)
    weight_GR = torch.ones_like(groups.reward_GR) if constant else _weights(groups, loser_GR, config)
    num_winners = weight_GR.shape[-1]
    weight_GP = weight_GR.unsqueeze(-2).expand(-1, num_winners, -1).flatten(-2)
    output = preference_loss(groups, pairs, beta=config.beta, weight_GP=weight_GP)
    return LossOutput(
        loss_G=output.loss_G,
        metrics_G={
            **output.metrics_G,
            "distance": metric_mean(groups.reward_GR, pairs.loser_GR & groups.reward_GR.isfinite()),
            "distance_weight": metric_mean(weight_GR, pairs.loser_GR),
        },
    )


def _weights(groups: GroupTensors, measured_GR: Tensor, config: LDAlignConfig) -> Tensor:
    """w [G, R], finite; 0 where no distance was measured."""
    batch = [distance for rewards in groups.batch_rewards for distance in rewards if math.isfinite(distance)]
    mean = math.fsum(batch) / len(batch) if batch else 0.0
    if mean == 0.0:
        return measured_GR.to(groups.reward_GR.dtype)
    distance_GR = torch.where(measured_GR, groups.reward_GR.detach(), groups.reward_GR.new_zeros(()))
    scale = mean if config.weight_mode == "normalised" else 1.0
    return (distance_GR / scale).clamp(0.0, config.max_weight)

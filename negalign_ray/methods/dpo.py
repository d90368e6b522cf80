"""DPO, Direct Preference Optimization (arXiv 2305.18290, Eq. 7): the pairwise baseline.

# Axes: G = groups (prompts), R = responses per group, padded; P = pairs of a group, see methods/pairs.py.
"""

import torch
from torch import Tensor

from negalign_ray.config import DPOConfig
from negalign_ray.methods.groups import GroupTensors, LossOutput, log_ratio, masked_mean, metric_mean, neg_log_sigmoid
from negalign_ray.methods.pairs import Pairs, ratio_metrics


def loss(groups: GroupTensors, config: DPOConfig) -> LossOutput:
    """`sp( b [(lp - lp_ref)(w) - (lp - lp_ref)(l)] )` -> loss [G], in nats; l a human negative.

        b = 0.1, log-ratios: w +2, l -3  ->  logit 0.5, loss 0.4741

    w is a human positive (`winners` = human), an own sample (samples), or either (human_and_samples). D2O's paper calls
    the first DPO-Ori and the last DPO-Full.

    Departures. [choice] Several winners or losers: the mean over all pairs (the paper has one), so that with K samples
    a human positive has 1/(K+1) of the weight. [choice] The one reference is rpos, the initial model unless set
    otherwise. A group without a pair contributes 0 and no gradient.

    Metrics: see `preference_loss`.
    """
    winner_GR = torch.zeros_like(groups.is_positive_GR)
    if config.winners in ("human", "human_and_samples"):
        winner_GR = winner_GR | groups.is_positive_GR
    if config.winners in ("samples", "human_and_samples"):
        winner_GR = winner_GR | groups.is_sample_GR
    return preference_loss(groups, Pairs.of(winner_GR, groups.is_negative_GR), beta=config.beta)


def preference_loss(groups: GroupTensors, pairs: Pairs, *, beta: float, weight_GP: Tensor | None = None) -> LossOutput:
    """DPO's loss over any pairs, each times its weight (1 without; finite everywhere, and without gradient).

    Metrics, one value per group, means over its pairs or the responses in them:
        positive_nats, negative_nats    b * log-ratio of the winners and of the losers
        margin_nats                     their difference, the logit
        positive_logratio, negative_logratio, sample_logratio   log-ratios by who wrote it, without b, in nats
        pair_accuracy_frac              share of pairs with a margin above 0
        weight                          w = sigmoid(-logit), 0..1: the gradient is `-w b [grad lp(w) - grad lp(l)]`
    """
    ratio_GR = log_ratio(groups.logprobs_GR, groups.rpos_logprobs_GR, pairs.member_GR)
    logit_GP = beta * pairs.margin(ratio_GR)
    loss_GP = neg_log_sigmoid(logit_GP)

    return LossOutput(
        loss_G=masked_mean(loss_GP if weight_GP is None else weight_GP * loss_GP, pairs.mask_GP),
        metrics_G={
            **ratio_metrics(ratio_GR, pairs, groups, beta=beta),
            "margin_nats": metric_mean(logit_GP, pairs.mask_GP),
            "weight_frac": metric_mean(torch.sigmoid(-logit_GP), pairs.mask_GP),
        },
    )

"""DPO, Direct Preference Optimization (arXiv 2305.18290, Eq. 7): the pairwise baseline.

# Axes: G = groups (prompts), R = responses per group, padded; W = R as the winner, L = R as the loser of a pair.
"""

import torch

from negalign_ray.config import DPOConfig
from negalign_ray.methods.groups import GroupTensors, LossOutput, log_ratio, masked_mean, metric_mean, neg_log_sigmoid


def loss(groups: GroupTensors, config: DPOConfig) -> LossOutput:
    """`sp( b [(lp - lp_ref)(w) - (lp - lp_ref)(l)] )` -> loss [G], in nats; w a human positive, l a human negative.

        b = 0.1, log-ratios: w +2, l -3  ->  logit 0.5, loss 0.4741

    Departures. [choice] Several positives or negatives: the mean over all pairs (the paper has one). [choice] The one
    reference is rpos, the initial model unless set otherwise. A group without a pair contributes 0 and no gradient;
    own samples are not read.

    Metrics, one value per group, means over its pairs:
        positive_nats, negative_nats    b * log-ratio of the winners and of the losers
        margin_nats                     their difference, the logit
        positive_logratio, negative_logratio   the first two without b, in nats
        pair_accuracy_frac              share of pairs with a margin above 0
        weight                          w = sigmoid(-logit), 0..1: the gradient is `-w b [grad lp(w) - grad lp(l)]`
    """
    pair_GWL = groups.is_positive_GR.unsqueeze(-1) & groups.is_negative_GR.unsqueeze(-2)
    positive_GR, negative_GR = pair_GWL.any(-1), pair_GWL.any(-2)
    ratio_GR = log_ratio(groups.logprobs_GR, groups.rpos_logprobs_GR, positive_GR | negative_GR)
    logit_GP = (config.beta * (ratio_GR.unsqueeze(-1) - ratio_GR.unsqueeze(-2))).flatten(-2)  # P = W * L
    pair_GP = pair_GWL.flatten(-2)

    return LossOutput(
        loss_G=masked_mean(neg_log_sigmoid(logit_GP), pair_GP),
        metrics_G={
            "positive_nats": metric_mean(config.beta * ratio_GR, positive_GR),
            "negative_nats": metric_mean(config.beta * ratio_GR, negative_GR),
            "margin_nats": metric_mean(logit_GP, pair_GP),
            "positive_logratio_nats": metric_mean(ratio_GR, positive_GR),
            "negative_logratio_nats": metric_mean(ratio_GR, negative_GR),
            "pair_accuracy_frac": metric_mean((logit_GP > 0).to(logit_GP.dtype), pair_GP),
            "weight_frac": metric_mean(torch.sigmoid(-logit_GP), pair_GP),
        },
    )

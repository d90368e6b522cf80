"""NPO, Negative Preference Optimization (arXiv 2404.05868): DPO without a winner; unlearning that slows itself down.

# Axes: G = groups (prompts), R = responses per group, padded.
"""

import torch

from negalign_ray.config import NPOConfig
from negalign_ray.methods.groups import GroupTensors, LossOutput, log_ratio, masked_mean, metric_mean, neg_log_sigmoid


def loss(groups: GroupTensors, config: NPOConfig) -> LossOutput:
    """`(2/b) sp( -b (lp - lp_ref)(yl) )` -> loss [G], in nats; yl a human negative. b -> 0 is gradient ascent on yl.

        b = 0.1, log-ratio -5  ->  20 * sp(0.5) = 9.4815; at th = ref 20 * log 2 = 13.8629

    Departures. [choice] Several negatives: the mean of their losses (the paper has one). [choice] The reference is
    rpos, as for the negatives of D2O, so that D2O with beta = 0 is this loss times alpha / 2. A group without a
    negative contributes 0 and no gradient; positives and own samples are not read.

    Metrics, one value per group, means over its negatives:
        negative_nats       b * log-ratio, minus the logit
        negative_logratio   the same without b, in nats
        weight              w = sigmoid(-logit), 0..1: the gradient is `2 w grad lp(yl)`; towards 0 = unlearned
    """
    negative_GR = groups.is_negative_GR
    ratio_GR = log_ratio(groups.logprobs_GR, groups.rpos_logprobs_GR, negative_GR)
    logit_GR = -config.beta * ratio_GR

    return LossOutput(
        loss_G=(2 / config.beta) * masked_mean(neg_log_sigmoid(logit_GR), negative_GR),
        metrics_G={
            "negative_nats": metric_mean(config.beta * ratio_GR, negative_GR),
            "negative_logratio_nats": metric_mean(ratio_GR, negative_GR),
            "weight_frac": metric_mean(torch.sigmoid(-logit_GR), negative_GR),
        },
    )

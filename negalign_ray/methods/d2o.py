"""D2O, Distributional Dispreference Optimization (arXiv 2403.03419, Eq. 3): human negatives, own samples as anchors.

# Axes: G = groups (prompts), R = responses per group, padded; a trailing 1 broadcasts over R.
"""

import torch

from negalign_ray.config import D2OConfig
from negalign_ray.methods.groups import GroupTensors, LossOutput, log_ratio, masked_mean, metric_mean, neg_log_sigmoid


def loss(groups: GroupTensors, config: D2OConfig) -> LossOutput:
    """`sp( (b/K) SUM_i [lp_th(y_i) - lp_rneg(y_i)] - a [lp_th(yl) - lp_rpos(yl)] )` -> loss [G], in nats.

    yl is a human negative, y_1..y_K are the group's own samples, K their actual count, a = `alpha`, b = `beta`.

        a = b = 0.1, log-ratios: yl -10, y_1 +1, y_2 -3  ->  logit 0.1 * (-1) - 0.1 * (-10) = 0.9, loss 0.3412

    Departures. [choice] Several negatives: the mean of their losses, each against the same anchor (the paper has one).
    [choice] A group without a negative or without a sample contributes exactly 0 and no gradient: a negative pushed
    down with nothing to hold the rest up is NPO (with beta = alpha), and should be asked for by that name.

    Metrics, one value per group, means over the responses they speak of:
        anchor_nats       (b/K) SUM_i log-ratio of the samples; falling = the model's own answers go down too
        negative_nats     a * log-ratio of the negatives; falling = unlearning
        margin_nats       anchor_nats - negative_nats, the logit
        sample_logratio, negative_logratio   the same two without b and a, in nats
        weight            w = sigmoid(-logit), 0..1: the gradient is `-w [(b/K) SUM_i grad lp(y_i) - a grad lp(yl)]`
    """
    complete_G1 = groups.is_negative_GR.any(-1, keepdim=True) & groups.is_sample_GR.any(-1, keepdim=True)
    negative_GR = groups.is_negative_GR & complete_G1
    sample_GR = groups.is_sample_GR & complete_G1

    negative_ratio_GR = log_ratio(groups.logprobs_GR, groups.rpos_logprobs_GR, negative_GR)
    sample_ratio_GR = log_ratio(groups.logprobs_GR, groups.rneg_logprobs_GR, sample_GR)
    anchor_G1 = config.beta * masked_mean(sample_ratio_GR, sample_GR).unsqueeze(-1)
    logit_GR = anchor_G1 - config.alpha * negative_ratio_GR  # one logit per negative; the other cells are not read

    return LossOutput(
        loss_G=masked_mean(neg_log_sigmoid(logit_GR), negative_GR),
        metrics_G={
            "anchor_nats": metric_mean(config.beta * sample_ratio_GR, sample_GR),
            "negative_nats": metric_mean(config.alpha * negative_ratio_GR, negative_GR),
            "margin_nats": metric_mean(logit_GR, negative_GR),
            "sample_logratio_nats": metric_mean(sample_ratio_GR, sample_GR),
            "negative_logratio_nats": metric_mean(negative_ratio_GR, negative_GR),
            "weight_frac": metric_mean(torch.sigmoid(-logit_GR), negative_GR),
        },
    )

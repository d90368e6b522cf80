"""Gradient ascent on the negatives: the crudest way to unlearn, and the baseline that shows the need of a brake.

# Axes: G = groups (prompts), R = responses per group, padded.
"""

from negalign_ray.config import GAConfig
from negalign_ray.methods.groups import GroupTensors, LossOutput, log_ratio, masked_mean, metric_mean, per_token


def loss(groups: GroupTensors, config: GAConfig) -> LossOutput:
    """`+lp(l)` -> loss [G], in nats; l a human negative. No reference is read.

        one negative with lp -40 over 20 tokens  ->  loss -40, negative_token_nll 2

    It has no lower bound: the pull on a negative never weakens, so the model is destroyed sooner or later. NPO is the
    same with a brake. [choice] Several negatives: the mean of their losses. A group without a negative contributes 0
    and no gradient; positives and own samples are not read.

    Metrics, one value per group, means over its negatives:
        negative_nll_nats         -lp(l), in nats per response
        negative_token_nll_nats   -lp(l) / |l|, in nats per token
    """
    negative_GR = groups.is_negative_GR
    lp_GR = log_ratio(groups.logprobs_GR, groups.logprobs_GR.new_zeros(()), negative_GR)

    return LossOutput(
        loss_G=masked_mean(lp_GR, negative_GR),
        metrics_G={
            "negative_nll_nats": metric_mean(-lp_GR, negative_GR),
            "negative_token_nll_nats": metric_mean(-per_token(lp_GR, groups), negative_GR),
        },
    )

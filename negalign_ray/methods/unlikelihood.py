"""Unlikelihood (arXiv 1908.04319, Eq. 4) of every token of the negatives: ascent that stops where a token is unlikely.

# Axes: G = groups (prompts), R = responses per group, padded.
"""

from negalign_ray.config import UnlikelihoodConfig
from negalign_ray.methods.groups import GroupTensors, LossOutput, log_ratio, masked_mean, metric_mean, per_token


def loss(groups: GroupTensors, config: UnlikelihoodConfig) -> LossOutput:
    """`-SUM_t log(1 - p(l_t))` -> loss [G], in nats; l a human negative. No reference is read.

        one negative of two tokens with p = 0.5 and 0.2  ->  loss log 2 - log 0.8 = 0.9163

    The sums come from the learner, which knows every token (`Needs.complements`, `log_complement` in models/policy.py).
    At least 0, and flat once every token is unlikely. [choice] Several negatives: the mean of their losses. A group
    without a negative contributes 0 and no gradient; positives and own samples are not read.

    Metrics, one value per group, means over its negatives:
        negative_nll_nats         -lp(l), in nats per response
        negative_token_nll_nats   -lp(l) / |l|, in nats per token
    """
    negative_GR = groups.is_negative_GR
    zero = groups.logprobs_GR.new_zeros(())
    complement_GR = log_ratio(groups.complement_logprobs_GR, zero, negative_GR)
    nll_GR = -log_ratio(groups.logprobs_GR.detach(), zero, negative_GR)

    return LossOutput(
        loss_G=-masked_mean(complement_GR, negative_GR),
        metrics_G={
            "negative_nll_nats": metric_mean(nll_GR, negative_GR),
            "negative_token_nll_nats": metric_mean(per_token(nll_GR, groups), negative_GR),
        },
    )

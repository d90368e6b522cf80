"""SFT, supervised fine-tuning on the human positives: the baseline that never sees a negative.

# Axes: G = groups (prompts), R = responses per group, padded.
"""

from negalign_ray.config import SFTConfig
from negalign_ray.methods.groups import GroupTensors, LossOutput, log_ratio, masked_mean, metric_mean


def loss(groups: GroupTensors, config: SFTConfig) -> LossOutput:
    """`-lp_th(w)` -> loss [G], in nats; w a human positive. No reference is read.

        one positive with lp -40 over 20 tokens  ->  loss 40, positive_token_nll 2

    The log-prob is summed over the tokens of a response, as METHODS writes it, so a long answer weighs more than in
    the token mean that most libraries call SFT. [choice] Several positives: the mean of their losses. A group without
    a positive contributes 0 and no gradient; negatives and own samples are not read.

    Metrics, one value per group, means over its positives:
        positive_nll         -lp(w), in nats per response
        positive_token_nll   -lp(w) / |w|, in nats per token
    """
    positive_GR = groups.is_positive_GR
    nll_GR = -log_ratio(groups.logprobs_GR, groups.logprobs_GR.new_zeros(()), positive_GR)

    return LossOutput(
        loss_G=masked_mean(nll_GR, positive_GR),
        metrics_G={
            "positive_nll_nats": metric_mean(nll_GR, positive_GR),
            "positive_token_nll_nats": metric_mean(nll_GR / groups.lengths_GR, positive_GR),
        },
    )

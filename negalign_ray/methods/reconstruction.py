"""What LD-Align's guide is fitted on (arXiv 2404.06390): rebuild both answers of a pair from their own vectors.

# Axes: G = groups (prompts), R = responses per group, padded.
"""

from negalign_ray.config import GuideConfig
from negalign_ray.methods.groups import GroupTensors, LossOutput, masked_mean, metric_mean


def loss(groups: GroupTensors, config: GuideConfig) -> LossOutput:
    """`-[ log p_psi(y | x, phi(x,y)) + log p_psi(y' | x, phi(x,y')) ]` -> loss [G], in nats.

        y -6, y' -4 and -8  ->  6 + 6 = 12

    `logprobs_GR` are the guide's, not the policy's. Departures: [choice] several positives or samples: the mean over
    each of the two. Human negatives are not read: no distance is measured from them.

    Metric: token_nll, the same per token, over both kinds together.
    """
    del config
    read_GR = groups.is_positive_GR | groups.is_sample_GR
    positive_G = masked_mean(groups.logprobs_GR, groups.is_positive_GR)
    sample_G = masked_mean(groups.logprobs_GR, groups.is_sample_GR)
    return LossOutput(
        loss_G=-(positive_G + sample_G),
        metrics_G={"token_nll": metric_mean(-groups.logprobs_GR / groups.lengths_GR.clamp(min=1), read_GR)},
    )

"""IPO, Identity Preference Optimization (arXiv 2310.12036, Eq. 17): DPO with a target margin instead of a sigmoid.

# Axes: G = groups (prompts), R = responses per group, padded; P = pairs of a group, see methods/pairs.py.
"""

from negalign_ray.config import IPOConfig
from negalign_ray.methods.groups import GroupTensors, LossOutput, log_ratio, masked_mean, metric_mean, per_token
from negalign_ray.methods.pairs import Pairs, ratio_metrics


def loss(groups: GroupTensors, config: IPOConfig) -> LossOutput:
    """`(D' - 1/(2b))^2`, `D' = (nlp - nlp_ref)(w) - (nlp - nlp_ref)(l)` -> loss [G]; nlp = lp / |y|.

        b = 0.25, log-ratios: w +2 over 2 tokens, l -3 over 3  ->  D' = 1 + 1 = 2, target 2, loss 0

    w is a human positive, l a human negative. Departures. The log-ratios are means over tokens, as later libraries have
    them; the paper sums. [choice] Several positives or negatives: the mean over all pairs. [choice] The one reference
    is rpos. A group without a pair contributes 0 and no gradient; own samples are not read.

    Metrics, one value per group: those of DPO without a weight (`positive_nats` and `negative_nats` are b * the summed
    log-ratios), and
        margin_nats     D', in nats per token; 1/(2b) is the target
    """
    pairs = Pairs.human(groups)
    ratio_GR = log_ratio(groups.logprobs_GR, groups.rpos_logprobs_GR, pairs.member_GR)
    margin_GP = pairs.margin(per_token(ratio_GR, groups))

    return LossOutput(
        loss_G=masked_mean((margin_GP - 1 / (2 * config.beta)) ** 2, pairs.mask_GP),
        metrics_G={
            **ratio_metrics(ratio_GR, pairs, groups, beta=config.beta),
            "margin_nats": metric_mean(margin_GP, pairs.mask_GP),
            "pair_accuracy_frac": pairs.share(margin_GP > 0),
        },
    )

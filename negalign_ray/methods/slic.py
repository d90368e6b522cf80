"""SLiC hinge (arXiv 2305.10425) on DPO's margin, as in RSO (arXiv 2309.06657): a pair that is won teaches nothing.

# Axes: G = groups (prompts), R = responses per group, padded; P = pairs of a group, see methods/pairs.py.
"""

from negalign_ray.config import SLiCConfig
from negalign_ray.methods.groups import GroupTensors, LossOutput, log_ratio, masked_mean, metric_mean
from negalign_ray.methods.pairs import Pairs, ratio_metrics


def loss(groups: GroupTensors, config: SLiCConfig) -> LossOutput:
    """`max(0, 1 - b [(lp - lp_ref)(w) - (lp - lp_ref)(l)])` -> loss [G]; w a human positive, l a human negative.

        b = 0.1, log-ratios: w +2, l -3  ->  margin 0.5, loss 0.5; w +8  ->  margin 1.1, loss 0 and no gradient

    Departures. The log-probs are those over the reference, as in RSO; SLiC has none and adds a likelihood term.
    [choice] Several positives or negatives: the mean over all pairs. [choice] The one reference is rpos. A group
    without a pair contributes 0 and no gradient; own samples are not read.

    Metrics, one value per group: those of DPO, where
        weight      share of pairs inside the hinge: the gradient of such a pair is `-b [grad lp(w) - grad lp(l)]`
    """
    pairs = Pairs.human(groups)
    ratio_GR = log_ratio(groups.logprobs_GR, groups.rpos_logprobs_GR, pairs.member_GR)
    margin_GP = config.beta * pairs.margin(ratio_GR)

    return LossOutput(
        loss_G=masked_mean((1 - margin_GP).relu(), pairs.mask_GP),
        metrics_G={
            **ratio_metrics(ratio_GR, pairs, groups, beta=config.beta),
            "margin_nats": metric_mean(margin_GP, pairs.mask_GP),
            "weight_frac": pairs.share(margin_GP < 1),
        },
    )

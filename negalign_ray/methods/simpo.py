"""SimPO, simple preference optimization (arXiv 2405.14734, Eq. 6): token means, a target margin, no reference.

# Axes: G = groups (prompts), R = responses per group, padded; P = pairs of a group, see methods/pairs.py.
"""

import torch

from negalign_ray.config import SimPOConfig
from negalign_ray.methods.groups import (
    GroupTensors,
    LossOutput,
    log_ratio,
    masked_mean,
    metric_mean,
    neg_log_sigmoid,
    per_token,
)
from negalign_ray.methods.pairs import Pairs


def loss(groups: GroupTensors, config: SimPOConfig) -> LossOutput:
    """`sp( b (nlp_w - nlp_l) - gamma )` -> loss [G], in nats; w a human positive, l a human negative; nlp = lp / |y|.

        b = 2, gamma = 0.5, w -4 over 4 tokens, l -6 over 4  ->  logit 2 * 0.5 - 0.5 = 0.5, loss 0.4741

    Departures. [choice] Several positives or negatives: the mean over all pairs. A group without a pair contributes 0
    and no gradient; references and own samples are not read.

    Metrics, one value per group, means over its pairs or the responses in them:
        margin_nats                                   the logit
        positive_token_nll_nats, negative_token_nll_nats   -nlp of the winners and of the losers
        pair_accuracy_frac                            share of pairs whose winner has the higher nlp
        weight              w = sigmoid(-logit), 0..1: the gradient is `-w b [grad nlp(w) - grad nlp(l)]`
    """
    pairs = Pairs.human(groups)
    lp_GR = log_ratio(groups.logprobs_GR, groups.logprobs_GR.new_zeros(()), pairs.member_GR)
    nlp_GR = per_token(lp_GR, groups)
    logit_GP = config.beta * pairs.margin(nlp_GR) - config.gamma

    return LossOutput(
        loss_G=masked_mean(neg_log_sigmoid(logit_GP), pairs.mask_GP),
        metrics_G={
            "margin_nats": metric_mean(logit_GP, pairs.mask_GP),
            "positive_token_nll_nats": metric_mean(-nlp_GR, pairs.winner_GR),
            "negative_token_nll_nats": metric_mean(-nlp_GR, pairs.loser_GR),
            "pair_accuracy_frac": pairs.share(pairs.margin(nlp_GR.detach()) > 0),
            "weight_frac": metric_mean(torch.sigmoid(-logit_GP), pairs.mask_GP),
        },
    )

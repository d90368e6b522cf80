"""NEAT, negative-prompt-driven alignment (arXiv 2410.12194): rank a prompt's candidates as their rewards do.

The candidates are human answers and own answers that were asked for under good and bad instructions, of this round and
of earlier ones. Rewards and log-probs are those of the bare prompt.

# Axes: G = groups (prompts), R = responses per group, padded; W = R as the worse, B = R as the better of a pair.
"""

import torch
from torch import Tensor

from negalign_ray.config import NEATConfig
from negalign_ray.methods.groups import GroupTensors, LossOutput, log_ratio, masked_mean, metric_mean


def loss(groups: GroupTensors, config: NEATConfig) -> LossOutput:
    """`SUM_{r_i < r_j} max(0, nlp_i - nlp_j)  -  lambda nlp(y_best)` -> loss [G], in nats per token; nlp = lp / |y|.

        rewards 0.1, 0.5, 0.9 with nlp -2, -3, -1  ->  one pair of three is violated: rank 1, best token nll 1, loss 2

    Any response with a reward takes part, whoever wrote it; y_best is the one of highest reward. Equal rewards give no
    pair, and a response without a reward (NaN) is not read. A violated pair has gradient +1 on the worse nlp and -1 on
    the better one; a pair that is ranked right has none.

    Departures. [inferred] The paper names the two terms, not their formulas; they are those of RRHF (arXiv 2304.05302),
    with the token mean in the second. [choice] lambda = `ft_weight` = 1. [choice] Several best: the mean of theirs. A
    group without any reward contributes 0 and no gradient.

    Metrics, one value per group:
        rank_nats                      the first term
        best_token_nll_nats            -nlp(y_best); its exponential is the perplexity of the best
        ranked_pairs_frac              share of pairs that the policy ranks as the rewards do
        active_negative_pairs_frac     of the pairs whose worse side is a human negative or was asked for under a bad
                                       instruction, the violated ones; at 0 negatives teach nothing and this is SFT
        negative_prompt_agreement_frac of this round's pairs (bad instruction, good instruction), those where the bad
                                       one's answer has the lower reward
    """
    scored_GR = groups.mask_GR & ~groups.reward_GR.isnan()
    nlp_GR = log_ratio(groups.logprobs_GR, groups.logprobs_GR.new_zeros(()), scored_GR) / groups.lengths_GR.clamp(min=1)
    pair_GWB = _pairs(scored_GR, scored_GR) & (groups.reward_GR.unsqueeze(-1) < groups.reward_GR.unsqueeze(-2))
    excess_GWB = nlp_GR.unsqueeze(-1) - nlp_GR.unsqueeze(-2)  # above 0: the worse answer is likelier
    best_GR = scored_GR & ~pair_GWB.any(-1)  # worse than none; not argmax, which fails where R is 0

    rank_G = torch.where(pair_GWB, excess_GWB, excess_GWB.new_zeros(())).relu().sum((-2, -1))
    ft_G = -masked_mean(nlp_GR, best_GR)

    bad_GR = groups.is_negative_GR | groups.is_negative_sample_GR
    fresh_GR = scored_GR & ~groups.is_carried_GR  # how well instructions work now; older policies wrote the others
    prompted_GWB = _pairs(groups.is_negative_sample_GR & fresh_GR, groups.is_positive_sample_GR & fresh_GR)
    return LossOutput(
        loss_G=rank_G + config.ft_weight * ft_G,
        metrics_G={
            "rank_nats": rank_G.detach().masked_fill(~pair_GWB.any(-1).any(-1), float("nan")),
            "best_token_nll_nats": metric_mean(-nlp_GR, best_GR),
            "ranked_pairs_frac": _share(excess_GWB < 0, of=pair_GWB),
            "active_negative_pairs_frac": _share(excess_GWB > 0, of=pair_GWB & bad_GR.unsqueeze(-1)),
            "negative_prompt_agreement_frac": _share(pair_GWB, of=prompted_GWB),
        },
    )


def _pairs(worse_GR: Tensor, better_GR: Tensor) -> Tensor:
    return worse_GR.unsqueeze(-1) & better_GR.unsqueeze(-2)


def _share(hits_GWB: Tensor, *, of: Tensor) -> Tensor:
    """Share of the pairs `of` that are hits -> [G]; NaN where there are none."""
    return metric_mean(hits_GWB.float().flatten(1), of.flatten(1))

"""PRO, preference ranking optimization (arXiv 2306.17492): each candidate against all that are worse, best first.

# Axes: G = groups (prompts), R = responses per group, padded and in the order of rewards; K = R as the better, J = R as
#       the worse of a pair.
"""

import torch

from negalign_ray.config import PROConfig
from negalign_ray.methods.candidates import in_order_of_reward
from negalign_ray.methods.groups import GroupTensors, LossOutput


def loss(groups: GroupTensors, config: PROConfig) -> LossOutput:
    """`SUM_k [ log(exp(p_k T_k) + SUM_{j>k} exp(p_j (r_k - r_j))) - p_k T_k ] + lam (n-1)^2 (-lp(y_1))` -> loss [G].

    k = 1..n-1 counts the candidates from the best reward r_1 down, p = lp / |y|, T_k = max_{j>k} (r_k - r_j).

        lam = 0, r = (2, 1), p = (-1, -2)  ->  T_1 = 1, log(exp(-1) + exp(-2)) + 1 = log(1 + exp(-1)) = 0.3133

    Rewards carry no gradient. Equal rewards stay in the order of the group. Groups may have different n. A response
    without a reward is not read; a group with fewer than two contributes 0 and no gradient.

    Metrics, one value per group:
        rank_nats             the first term
        sft_nats              the second
        ranked_pairs_frac     share of pairs that the policy ranks as the rewards do
        best_token_nll_nats   -p_1
    """
    candidates = in_order_of_reward(groups)
    p_GR, rewards_GR, mask_GR = candidates.nlp_GR, candidates.rewards_GR, candidates.mask_GR
    later_GKJ = (mask_GR.unsqueeze(-1) & mask_GR.unsqueeze(-2)).triu(1)  # j > k, both candidates
    gap_GKJ = (rewards_GR.unsqueeze(-1) - rewards_GR.unsqueeze(-2)).masked_fill(~later_GKJ, 0.0)
    none_GK1 = gap_GKJ.new_zeros(*rewards_GR.shape, 1)  # amax needs an entry even where R is 0
    largest_GK = torch.cat([none_GK1, gap_GKJ], dim=-1).amax(-1)  # T_k; 0 where nothing is worse

    chosen_GK = p_GR * largest_GK
    others_GKJ = (p_GR.unsqueeze(-2) * gap_GKJ).masked_fill(~later_GKJ, -torch.inf)
    # Where nothing is worse: log(exp(0)) - 0 = 0, without gradient.
    total_GK = torch.cat([chosen_GK.unsqueeze(-1), others_GKJ], dim=-1).logsumexp(-1)
    rank_G = (total_GK - chosen_GK).sum(-1)
    sft_G = -config.sft_weight * (candidates.num_G - 1) ** 2 * candidates.best_G
    has_pair_G = candidates.num_G > 1

    return LossOutput(
        loss_G=rank_G + sft_G,
        metrics_G={
            "rank_nats": rank_G.detach().masked_fill(~has_pair_G, torch.nan),
            "sft_nats": sft_G.detach().masked_fill(~has_pair_G, torch.nan),
            "ranked_pairs_frac": candidates.ranked_pairs_frac(),
            "best_token_nll_nats": candidates.best_token_nll(),
        },
    )

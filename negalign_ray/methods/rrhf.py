"""RRHF, rank responses to align language models with human feedback (arXiv 2304.05302, Eq. 2 to 5).

# Axes: G = groups (prompts), R = responses per group, padded.
"""

from negalign_ray.config import NEATConfig, RRHFConfig
from negalign_ray.methods import neat
from negalign_ray.methods.groups import GroupTensors, LossOutput


def loss(groups: GroupTensors, config: RRHFConfig) -> LossOutput:
    """`SUM_{r_i < r_j} max(0, nlp_i - nlp_j)  -  ft_weight nlp(y_best)` -> loss [G], in nats per token; nlp = lp / |y|.

        rewards 0.1, 0.5, 0.9 with nlp -2, -3, -1  ->  one pair of three is violated: rank 1, best token nll 1, loss 2

    NEAT's loss is this one; what sets NEAT apart is where its candidates come from. Here they are the human answers
    and, when `sampling.num_samples` is above 0, own answers of this step. The paper samples them once, from other
    models and from the initial one.

    Departures. The second term is the mean over tokens, as in the authors' code; the paper's Eq. 4 sums. [choice]
    Several best: the mean of theirs.

    Metrics: those of NEAT.
    """
    return neat.loss(groups, NEATConfig(ft_weight=config.ft_weight))

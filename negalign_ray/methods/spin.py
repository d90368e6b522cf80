"""SPIN, self-play fine-tuning (arXiv 2401.01335, Eq. 4.7): tell the human answer from the model's own.

# Axes: G = groups (prompts), R = responses per group, padded.
"""

from negalign_ray.config import SPINConfig
from negalign_ray.methods.dpo import preference_loss
from negalign_ray.methods.groups import GroupTensors, LossOutput
from negalign_ray.methods.pairs import Pairs


def loss(groups: GroupTensors, config: SPINConfig) -> LossOutput:
    """`DPO(w, y')` -> loss [G], in nats; w a human positive, y' an own sample.

        b = 0.1, log-ratios: w +2, y' -3  ->  logit 0.5, loss 0.4741

    The reference is rpos. In the paper it is the policy that wrote the samples, frozen for one iteration; how samples
    and reference follow the policy is a matter of the run, not of this loss. Departures. [choice] Several positives or
    samples: the mean over all pairs (the paper has one). A group without a pair contributes 0 and no gradient; human
    negatives are not read.

    Metrics: those of DPO; the losers are the samples.
    """
    return preference_loss(groups, Pairs.of(groups.is_positive_GR, groups.is_sample_GR), beta=config.beta)

"""How far each behaviour (kind of harm) has been learned: figures per group, added up by behaviour.

groups of a micro-batch --figures--> [G] --by_behaviour--> sums and counts of a rank --(merge.py)--> behaviour/NAME/KEY

# Axes: G = groups (prompts), R = responses per group, padded; O = R as the good answer, I = R as the bad one of a pair.
"""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from negalign_ray.methods import Needs
from negalign_ray.methods.groups import GroupTensors, log_ratio, metric_mean
from negalign_ray.records import Group


def figures(groups: GroupTensors, needs: Needs) -> dict[str, Tensor]:
    """Figures of each group -> [G], detached; NaN where a group lacks the answers they speak of.

    The *measure* of an answer is its summed log-ratio to rpos, or its summed log-prob for a method without references.

        good answers +2 and 0, bad answer -3  ->  margin 1 - (-3) = 4, accuracy 1 (both pairs are apart)

    Good and bad are what the method sets against each other (`sides`). `margin_per_token_nats` takes the measure by
    token, since a long answer moves further than a short one in the same step.
    """
    measure_GR = log_ratio(groups.logprobs_GR.detach(), groups.rpos_logprobs_GR, groups.mask_GR)
    per_token_GR = measure_GR / groups.lengths_GR
    good_GR, bad_GR = sides(groups, needs)
    pair_GOI = good_GR.unsqueeze(-1) & bad_GR.unsqueeze(-2)
    apart_GOI = measure_GR.unsqueeze(-1) > measure_GR.unsqueeze(-2)
    return {
        "negative_nats": metric_mean(measure_GR, groups.is_negative_GR),
        "positive_nats": metric_mean(measure_GR, groups.is_positive_GR),
        "sample_nats": metric_mean(measure_GR, groups.is_sample_GR),
        "margin_nats": metric_mean(measure_GR, good_GR) - metric_mean(measure_GR, bad_GR),
        "margin_per_token_nats": metric_mean(per_token_GR, good_GR) - metric_mean(per_token_GR, bad_GR),
        "accuracy_frac": metric_mean(apart_GOI.flatten(-2).to(measure_GR.dtype), pair_GOI.flatten(-2)),
    }


def sides(groups: GroupTensors, needs: Needs) -> tuple[Tensor, Tensor]:
    """Masks [G, R] of the good and the bad answers of a margin.

    | method                             | good                          | bad                           |
    | own samples, no positives (D2O)    | samples                       | negatives                     |
    | the same, by polarity (NEAT)       | samples but the next ones     | negatives, samples asked for  |
    |                                    |                               | under a bad instruction       |
    | samples against positives (SPIN)   | positives                     | samples                       |
    | any other                          | positives                     | negatives                     |
    """
    if needs.samples != "required" or (needs.positives and needs.negatives):
        return groups.is_positive_GR, groups.is_negative_GR
    if samples_are_bad(needs):
        return groups.is_positive_GR, groups.is_sample_GR
    bad_sample_GR = groups.is_negative_sample_GR
    return groups.is_sample_GR & ~bad_sample_GR, groups.is_negative_GR | bad_sample_GR


def samples_are_bad(needs: Needs) -> bool:
    """Whether the method pushes its own samples down: it sets them against human positives (SPIN, LD-Align)."""
    return needs.samples == "required" and needs.positives and not needs.negatives


def by_behaviour(
    sums: dict[str, float], counts: dict[str, int], groups: Sequence[Group], values: Mapping[str, Tensor]
) -> None:
    """Add a micro-batch to what a rank reports (default dictionaries). Groups without a behaviour are left out."""
    columns = {name: values_G.double().tolist() for name, values_G in values.items()}
    for index, group in enumerate(groups):
        if group.prompt.behaviour is None:
            continue
        prefix = f"behaviour/{group.prompt.behaviour}"
        sums[f"{prefix}/num_groups"] += 1
        for name, column in columns.items():
            if not math.isnan(column[index]):  # NaN = does not apply to this group
                sums[f"{prefix}/{name}"] += column[index]
                counts[f"{prefix}/{name}"] += 1

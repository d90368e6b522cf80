"""A method of your own, in one file: a loss, what it needs, its settings.

    L = max(0, margin + log-ratio of the negatives) + hold * (log-ratio of the own samples)^2

A negative is pushed down until it is `margin` nats below the reference, and no further; the model's own answers are
held where they are. The loss is tried on made-up groups before anything is started.

python examples/03_custom_method.py
python examples/03_custom_method.py method.settings.margin=10
negalign-ray train --preset quickstart --set run.name=hinge \
    --set method.name=custom --set method.target=examples/03_custom_method.py:HINGE
"""

import sys

import torch
from pydantic import NonNegativeFloat, PositiveFloat

from negalign_ray import align
from negalign_ray.config import Section
from negalign_ray.methods import Method, Needs, always
from negalign_ray.methods.groups import GroupTensors, LossOutput, log_ratio, masked_mean, metric_mean


class Settings(Section):
    margin: PositiveFloat = 5.0  # nats
    hold: NonNegativeFloat = 0.01  # per square nat


def loss(groups: GroupTensors, settings: Settings) -> LossOutput:
    """One value per group (G); R is the number of answers of the largest group, and masks say who is who."""
    negative_GR = log_ratio(groups.logprobs_GR, groups.rpos_logprobs_GR, groups.is_negative_GR)
    sample_GR = log_ratio(groups.logprobs_GR, groups.rneg_logprobs_GR, groups.is_sample_GR)
    push_G = masked_mean(torch.relu(settings.margin + negative_GR), groups.is_negative_GR)
    hold_G = settings.hold * masked_mean(sample_GR**2, groups.is_sample_GR)
    return LossOutput(
        loss_G=push_G + hold_G,
        metrics_G={  # a name of the catalogue (docs/metrics.md) keeps it; `push` becomes learner/own_push
            "negative_logratio_nats": metric_mean(negative_GR, groups.is_negative_GR),
            "sample_logratio_nats": metric_mean(sample_GR, groups.is_sample_GR),
            "push": push_G.detach(),
        },
    )


HINGE = Method("hinge", loss, always(Needs(negatives=True, samples="required", references=True)), settings=Settings)

if __name__ == "__main__":
    run = align(
        preset="quickstart",
        method={"name": "custom", "target": f"{__file__}:HINGE", "settings": {"margin": 8.0}},
        out="runs/custom_method",
        overrides=sys.argv[1:],
    )
    print(run)
    first, last = run.metrics()[0], run.metrics()[-1]
    print(f"push: {first['learner/own_push']:.2f} -> {last['learner/own_push']:.2f} nats")

"""Methods as a user would write them, and broken ones, for tests of `method.name=custom`."""

from types import SimpleNamespace

import torch
from pydantic import PositiveFloat

from negalign_ray.config import Section
from negalign_ray.methods import METHODS, Method, Needs, always
from negalign_ray.methods.groups import GroupTensors, LossOutput, log_ratio, masked_mean, metric_mean
from tests.methods.cases import CONFIGS


class Settings(Section):
    margin: PositiveFloat = 1.0  # nats


def hinge(groups: GroupTensors, settings: Settings) -> LossOutput:
    """`max(0, margin + log-ratio)` of the negatives -> [G]: pushed down by `margin`, and no further."""
    ratio_GR = log_ratio(groups.logprobs_GR, groups.rpos_logprobs_GR, groups.is_negative_GR)
    loss_G = masked_mean(torch.relu(settings.margin + ratio_GR), groups.is_negative_GR)
    active_GR = (ratio_GR > -settings.margin).float()
    return LossOutput(loss_G, {"active_frac": metric_mean(active_GR, groups.is_negative_GR)})


NEEDS = Needs(negatives=True, references=True)
HINGE = Method("hinge", hinge, always(NEEDS), Settings)


def broken(loss, *, needs: Needs = NEEDS) -> Method:
    return Method("broken", loss, always(needs))


def _output(loss_G, **metrics_G) -> LossOutput:
    return LossOutput(loss_G, metrics_G)


# Each loss breaks one promise; the names are those of the test's table.
BROKEN = SimpleNamespace(
    tensor=broken(lambda groups, _: groups.logprobs_GR.sum(-1)),
    mean=broken(lambda groups, _: _output(groups.logprobs_GR.mean())),
    per_answer=broken(lambda groups, _: _output(groups.logprobs_GR)),
    metric_gradient=broken(lambda groups, _: _output(groups.logprobs_GR.sum(-1), x=groups.logprobs_GR.sum(-1))),
    metric_mean=broken(lambda groups, _: _output(groups.logprobs_GR.sum(-1), x=groups.logprobs_GR.detach().mean())),
    metric_name=broken(
        lambda groups, _: _output(groups.logprobs_GR.sum(-1), **{"My x": torch.zeros(len(groups.mask_GR))})
    ),
    no_gradient=broken(lambda groups, _: _output(groups.logprobs_GR.detach().sum(-1))),
    not_finite=broken(lambda groups, _: _output((groups.logprobs_GR / 0).sum(-1))),
    poisoned=broken(
        lambda groups, _: _output(masked_mean(groups.logprobs_GR.abs().sqrt(), groups.is_negative_GR)),
    ),
    coupled=broken(lambda groups, _: _output(groups.logprobs_GR.sum(-1) / max(1, len(groups.logprobs_GR)))),
    raises=broken(lambda groups, _: groups.nothing_of_that_name),
    not_empty=broken(lambda groups, _: _output(groups.logprobs_GR.sum(-1) / (groups.logprobs_GR[0].numel() * 0 + 1))),
)
CANDIDATES = broken(hinge, needs=Needs(candidates=True))
REWARD = broken(hinge, needs=Needs(reward=True))
NO_METHOD = hinge
NO_FUNCTION = Method("no_function", 3, always(NEEDS))  # type: ignore[arg-type]
NO_NEEDS = Method("no_needs", hinge, lambda settings: "negatives")  # type: ignore[arg-type, return-value]
NO_SETTINGS = Method("no_settings", hinge, always(NEEDS), settings={"margin": 1.0})  # type: ignore[arg-type]


def _as_own(name: str) -> Method:
    packaged, config = METHODS[name], CONFIGS[name]
    return Method(name, lambda groups, _: packaged.loss(groups, config), lambda _: packaged.needs(config))


PACKAGED = SimpleNamespace(**{name: _as_own(name) for name in METHODS})

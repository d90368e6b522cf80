"""A method of the user's own, tried on two small groups of made-up numbers before anything is started.

What the training loop relies on (see LossOutput): one loss per group, finite, differentiable, the same whichever groups
share its micro-batch, and 0 groups allowed, since a rank's share of a batch may be empty.

# Axes: G = groups, R = responses per group, padded.
"""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from negalign_ray.config import CustomConfig
from negalign_ray.errors import ConfigError
from negalign_ray.methods.contract import Method, Needs
from negalign_ray.methods.custom import METRIC_NAME, load_method
from negalign_ray.methods.groups import GroupTensors, LossOutput
from negalign_ray.user_code import file_of, line_in

NUM_GROUPS = 2  # never the number of answers, so that a loss per answer has another shape


def check_method(section: CustomConfig) -> None:
    """ConfigError unless the method can be loaded and keeps the contract."""
    method = load_method(section)
    where = f"method.target={section.target!r}: the loss"
    groups = made_up_groups(method.needs(section))
    output = _output(method, section, groups, where)
    _require_shapes(output, groups, where)
    _require_finite_gradient(output, groups, where)
    for part in (slice(0, 1), slice(1, NUM_GROUPS), slice(0, 0)):
        alone_G = _output(method, section, _cut(groups, part), where).loss_G
        if not torch.allclose(alone_G, output.loss_G[part], rtol=1e-4, atol=1e-6):
            raise ConfigError(
                f"{where} of a group changes with the other groups of its micro-batch ({_numbers(output.loss_G[part])} "
                f"among others, {_numbers(alone_G)} alone), so that it would depend on the number of ranks; compute it "
                "from the group's own row, and batch means from groups.batch_rewards."
            )


def made_up_groups(needs: Needs) -> GroupTensors:
    """Two groups of up to five responses (two negatives, a positive, two samples), as far as the method has them."""
    roles = ["negative"] * 2 + ["positive"] * needs.positives + ["sample"] * 2 * (needs.samples != "unused")
    shape_GR = (NUM_GROUPS, len(roles) + 1)  # the last column is padding, and so is the first negative of group 1

    def rows(scale: float) -> Tensor:
        return -scale * (1 + torch.arange(shape_GR[0] * shape_GR[1], dtype=torch.float32) % 7).reshape(shape_GR)

    def where(role: str) -> Tensor:
        mask_GR = torch.tensor([[name == role for name in (*roles, "")]] * NUM_GROUPS)
        mask_GR[1, 0] = False
        return mask_GR

    negative_GR, positive_GR, sample_GR = where("negative"), where("positive"), where("sample")
    mask_GR = negative_GR | positive_GR | sample_GR

    def only(values_GR: Tensor, fill: float) -> Tensor:
        return values_GR.masked_fill(~mask_GR, fill)

    reward_GR = only(rows(0.1), float("nan")) if needs.reward else torch.full(shape_GR, float("nan"))
    complements_GR = only(rows(0.5), 0.0) if needs.complements else torch.full(shape_GR, float("nan"))
    return GroupTensors(
        logprobs_GR=only(rows(3.0), 0.0).requires_grad_(),
        complement_logprobs_GR=complements_GR.requires_grad_(needs.complements),
        lengths_GR=torch.full(shape_GR, 4).masked_fill(~mask_GR, 1),
        rpos_logprobs_GR=only(rows(2.5), 0.0) if needs.references else torch.zeros(shape_GR),
        rneg_logprobs_GR=only(rows(2.0), 0.0) if needs.references else torch.zeros(shape_GR),
        is_negative_GR=negative_GR,
        is_positive_GR=positive_GR,
        is_sample_GR=sample_GR,
        is_positive_sample_GR=torch.zeros(shape_GR, dtype=torch.bool),
        is_negative_sample_GR=torch.zeros(shape_GR, dtype=torch.bool),
        is_carried_GR=torch.zeros(shape_GR, dtype=torch.bool),
        reward_GR=reward_GR,
        batch_rewards=tuple(tuple(row.tolist()) for row in reward_GR),
    )


def _cut(groups: GroupTensors, part: slice) -> GroupTensors:
    names = [field.name for field in fields(GroupTensors) if field.name != "batch_rewards"]
    return replace(groups, **{name: getattr(groups, name)[part] for name in names})


def _output(method: Method, section: CustomConfig, groups: GroupTensors, where: str) -> LossOutput:
    """What the loss returns; its own errors with the line in the user's file."""
    try:
        output: Any = method.loss(groups, section)
    except Exception as error:  # whatever the user's code raises
        file = file_of(section.target)
        line = line_in(error, None if file is None else str(file.resolve()))
        num = len(groups.logprobs_GR)
        raise ConfigError(
            f"{where} failed on {num} made-up groups{line} ({type(error).__name__}: {error}); correct it (a rank's "
            "share of a batch may be empty)."
        ) from error
    return output


def _require_shapes(output: LossOutput, groups: GroupTensors, where: str) -> None:
    wanted = (NUM_GROUPS,)
    for name, values_G in {"loss_G": output.loss_G, **output.metrics_G}.items():
        found = tuple(values_G.shape) if isinstance(values_G, Tensor) else type(values_G).__name__
        if found != wanted:
            raise ConfigError(
                f"{where} returned {name} of shape {found} for {NUM_GROUPS} groups; return one value per group, "
                f"{wanted}: the learner alone takes the mean."
            )
    for name, values_G in output.metrics_G.items():
        if values_G.requires_grad:
            raise ConfigError(f"{where} returned the metric {name} with a gradient; add `.detach()`.")
        if not METRIC_NAME.fullmatch(name):
            raise ConfigError(f"{where} returned a metric called {name!r}; use small letters, digits and _.")


def _require_finite_gradient(output: LossOutput, groups: GroupTensors, where: str) -> None:
    if not output.loss_G.requires_grad:
        raise ConfigError(
            f"{where} has no gradient; compute it from groups.logprobs_GR (or complement_logprobs_GR) without "
            "`.detach()` and `torch.no_grad()`."
        )
    if not output.loss_G.isfinite().all():
        raise ConfigError(
            f"{where} is {_numbers(output.loss_G)} on made-up groups; padding has reward nan and log-prob 0: choose "
            "with torch.where or masked_mean, never multiply by a mask."
        )
    inputs = [part for part in (groups.logprobs_GR, groups.complement_logprobs_GR) if part.requires_grad]
    gradients = torch.autograd.grad(output.loss_G.sum(), inputs, allow_unused=True, retain_graph=True)
    if not all(part is None or part.isfinite().all() for part in gradients):
        raise ConfigError(
            f"{where} has a gradient that is not finite on made-up groups; choose with torch.where BEFORE the "
            "arithmetic that fails (nan or inf outside the mask comes back in backward)."
        )


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in values.tolist()) or "nothing"

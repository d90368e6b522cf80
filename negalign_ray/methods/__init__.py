"""The methods: pure losses over groups, one small file each, and what each of them needs.

METHODS[config.method.name].loss(groups, config.method) -> LossOutput
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from negalign_ray.methods import d2o, dpo, npo, sft
from negalign_ray.methods.groups import GroupTensors, LossOutput


@dataclass(frozen=True)
class Needs:
    """What must be there before a method can train: rows in the data, and roles in the run."""

    negatives: bool  # human negatives in every group
    positives: bool  # human positives in every group
    samples: bool  # own answers in every group: the run has samplers
    references: bool  # reference log-probs on every response: the run has references


@dataclass(frozen=True)
class Method:
    """`loss(groups, config)` takes the config section of the same name; it is pure and unreduced (see LossOutput)."""

    name: str
    loss: Callable[[GroupTensors, Any], LossOutput]
    needs: Needs


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("d2o", d2o.loss, Needs(negatives=True, positives=False, samples=True, references=True)),
        Method("dpo", dpo.loss, Needs(negatives=True, positives=True, samples=False, references=True)),
        Method("npo", npo.loss, Needs(negatives=True, positives=False, samples=False, references=True)),
        Method("sft", sft.loss, Needs(negatives=False, positives=True, samples=False, references=False)),
    )
}


def missing(needs: Needs, *, has_negatives: bool, has_positives: bool) -> str | None:
    """What the data lacks for a method and what to do about it, for the user; None when it lacks nothing.

    The caller puts the setting in front: `method.name=dpo: the data has no good answers ...`.
    """
    lacks = []
    if needs.negatives and not has_negatives:
        lacks.append("bad answers (add a column `rejected`, or `completion` with `label: false`)")
    if needs.positives and not has_positives:
        lacks.append("good answers (add a column `chosen`, or `completion` with `label: true`)")
    if not lacks:
        return None
    fitting = sorted(
        method.name
        for method in METHODS.values()
        if has_negatives >= method.needs.negatives and has_positives >= method.needs.positives
    )
    instead = f", or set method.name to {' or '.join(fitting)}, which this data allows" if fitting else ""
    return f"the data has no {' and no '.join(lacks)}, which this method needs; complete the data{instead}."

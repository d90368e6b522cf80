"""The methods: pure losses over groups, one small file each, and what each of them needs.

METHODS[config.method.name].loss(groups, config.method) -> LossOutput
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from negalign_ray.config import DPOConfig
from negalign_ray.methods import (
    clha,
    d2o,
    dpo,
    ga,
    ipo,
    ld_align,
    neat,
    npo,
    pro,
    rrhf,
    sft,
    simpo,
    slic,
    spin,
    unlikelihood,
)
from negalign_ray.methods.groups import GroupTensors, LossOutput


@dataclass(frozen=True)
class Needs:
    """What must be there before a method can train: human answers in the data, and roles in the run."""

    negatives: bool = False  # human negatives in every group
    positives: bool = False  # human positives in every group
    # Own answers in every group. "optional": further candidates beside the human answers; sampling.num_samples=0 leaves
    # them out, and then every prompt must have human answers of both kinds.
    samples: Literal["required", "optional", "unused"] = "unused"
    references: bool = False  # reference log-probs on every response: the run has references
    reward: bool = False  # a score on every response: the run has scorers with the head `method.reward_head`
    candidates: bool = False  # own answers of earlier rounds too, up to `method.max_candidates` of a prompt
    complements: bool = False  # SUM_t log(1 - p(y_t)) of every response: the learner computes it beside lp


@dataclass(frozen=True)
class Method:
    """`loss(groups, config)` and `needs(config)` take the config section of the same name.

    The loss is pure and unreduced (see LossOutput).
    """

    name: str
    loss: Callable[[GroupTensors, Any], LossOutput]
    needs: Callable[[Any], Needs]


def always(needs: Needs) -> Callable[[Any], Needs]:
    """The needs of a method whose settings do not change them."""
    return lambda config: needs


def _dpo_needs(config: DPOConfig) -> Needs:
    return Needs(
        negatives=True,
        positives=config.winners != "samples",
        samples="unused" if config.winners == "human" else "required",
        references=True,
    )


RANKED = Needs(samples="optional", reward=True)  # every response of the group is a candidate

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("d2o", d2o.loss, always(Needs(negatives=True, samples="required", references=True))),
        Method("neat", neat.loss, always(Needs(samples="required", reward=True, candidates=True))),
        Method("clha", clha.loss, always(RANKED)),
        Method("ld_align", ld_align.loss, always(Needs(positives=True, samples="required", references=True))),
        Method("dpo", dpo.loss, _dpo_needs),
        Method("ipo", ipo.loss, always(Needs(negatives=True, positives=True, references=True))),
        Method("slic", slic.loss, always(Needs(negatives=True, positives=True, references=True))),
        Method("simpo", simpo.loss, always(Needs(negatives=True, positives=True))),
        Method("spin", spin.loss, always(Needs(positives=True, samples="required", references=True))),
        Method("rrhf", rrhf.loss, always(RANKED)),
        Method("pro", pro.loss, always(RANKED)),
        Method("npo", npo.loss, always(Needs(negatives=True, references=True))),
        Method("ga", ga.loss, always(Needs(negatives=True))),
        Method("unlikelihood", unlikelihood.loss, always(Needs(negatives=True, complements=True))),
        Method("sft", sft.loss, always(Needs(positives=True))),
    )
}

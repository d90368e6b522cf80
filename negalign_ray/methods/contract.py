"""What a method is: a pure loss over groups, and what must be there before it can train."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from negalign_ray.config import Section
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

    The loss is pure and unreduced (see LossOutput). `settings` is for a method of your own (see custom.py): the
    section class of its settings, which `loss` and `needs` then get an instance of.
    """

    name: str
    loss: Callable[[GroupTensors, Any], LossOutput]
    needs: Callable[[Any], Needs]
    settings: type[Section] = Section


def always(needs: Needs) -> Callable[[Any], Needs]:
    """The needs of a method whose settings do not change them."""
    return lambda config: needs

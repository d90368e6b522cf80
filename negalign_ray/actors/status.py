"""What the terminal shows of a run that goes on, and what learners are told when they are done."""

from dataclasses import dataclass, field
from pathlib import Path

from negalign_ray.errors import NegalignError
from negalign_ray.loops.guards import Firing


@dataclass(frozen=True)
class Status:
    """What the terminal shows."""

    step: int  # optimizer steps done
    num_steps: int
    sampler_version: int
    ready_groups: int
    buffered_groups: int
    metrics: dict[str, float]  # of the last step
    fatal: NegalignError | None
    firings: tuple[Firing, ...] = ()  # of guards, so far
    fit: tuple[int, float] | None = None  # groups, seconds so far: the guide is being fitted
    final_version: int = 0  # of the weights in model/, once the learners are done
    rolled_back_to: int | None = None  # step of the checkpoint that model/ is, after a roll-back
    replicas: dict[str, int] = field(default_factory=dict)  # samplers, scorers, references that serve
    moves: int = 0  # grows with everything that happens to a role: the watchdog looks at it
    num_learners: int = 0  # ranks that have started
    starts_anew: bool = False  # the learners have ended, or are about to, so that more of them can start
    is_stopping: bool = False  # somebody has asked for the end: Ctrl-C, or `negalign-ray stop`


@dataclass(frozen=True)
class Ending:
    """What every learner rank is to do when it has taken its last step."""

    back_to: Path | None  # the checkpoint that a guard wants it to go back to; None = stay
    starts_anew: bool  # seal a checkpoint, and leave the model to those who go on from it

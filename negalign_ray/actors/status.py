"""What the terminal shows of a run that goes on."""

from dataclasses import dataclass, field

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
    is_stopping: bool = False  # somebody has asked for the end: Ctrl-C, or `negalign-ray stop`

"""What asynchrony gains: the same run with staleness 1 and with staleness 0, one thread per role.

Strictly on-policy, sampling, pricing and training take turns; with staleness 1 the samplers write the next step's
answers while the learner trains. The gain is largest when both sides take equally long, and is bounded by the longer
one: `ideal` says what the stages of the synchronous run would allow.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from negalign_ray.bench.short_run import RunFigures, short_run
from negalign_ray.bench.sizes import Sizes
from negalign_ray.config import Config

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AsyncFigures:
    async_over_sync: float  # step time at staleness 1 over step time at staleness 0
    ideal: float  # the longer of the two sides over their sum, from the synchronous run
    sampling_side_s: float  # weights, sampler, scorer and reference, one after the other
    learning_side_s: float  # learner and gathering of weights
    asynchronous: RunFigures
    synchronous: RunFigures


def measure_async(config: Config, sizes: Sizes, run_dir: Path) -> AsyncFigures:
    """Needs a Ray cluster."""
    runs = []
    for staleness in (0, 1):
        settings = {
            "sampling": {
                "num_samples": sizes.async_answers,
                "max_new_tokens": sizes.async_new_tokens,
                "staleness": staleness,
                "buffer_groups": 4 * sizes.async_prompts,
            },
            "samplers": {"threads": 1},
            "references": {"threads": 1},
            "learners": {"threads": 1, "groups_per_step": sizes.async_prompts},
        }
        runs.append(short_run(config, sizes, run_dir, name=f"bench-staleness-{staleness}", settings=settings))
    synchronous, asynchronous = runs
    sampling_s, learning_s = sides_of(synchronous)
    return AsyncFigures(
        async_over_sync=asynchronous.step_s / synchronous.step_s,
        ideal=max(sampling_s, learning_s) / (sampling_s + learning_s),
        sampling_side_s=sampling_s,
        learning_side_s=learning_s,
        asynchronous=asynchronous,
        synchronous=synchronous,
    )


def sides_of(run: RunFigures) -> tuple[float, float]:
    """Seconds of a step that pass on the sampling side, and on the learning side."""
    seconds = {name: stage.seconds for name, stage in run.stages.items()}
    learning_s = seconds.pop("learner") + seconds.pop("gather")
    return sum(seconds.values()), learning_s

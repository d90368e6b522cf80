"""How much work one step is, from the prompts and the settings."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from statistics import mean

from negalign_ray.actors.plan import Plan


@dataclass(frozen=True)
class Workload:
    groups: int  # per optimizer step
    answers: int  # sampled per group
    trained_answers: int  # per group: candidates of earlier rounds take part again (NEAT)
    max_new_tokens: int
    answer_tokens: float  # mean of one answer
    prompt_tokens: float  # mean
    human_tokens: float  # of all human answers of a prompt, mean

    @classmethod
    def of(cls, plan: Plan, *, answer_frac: float) -> "Workload":
        """`answer_frac`: mean length of an answer over sampling.max_new_tokens."""
        config, kept = plan.config, plan.candidates
        return cls(
            groups=config.learners.groups_per_step,
            answers=plan.num_samples,
            trained_answers=max(plan.num_samples, kept.max_candidates if kept else 0),
            max_new_tokens=config.sampling.max_new_tokens,
            answer_tokens=answer_frac * config.sampling.max_new_tokens,
            prompt_tokens=mean(len(prompt.token_ids) for prompt in plan.data.train),
            human_tokens=mean(sum(len(r.token_ids) for r in prompt.responses) for prompt in plan.data.train),
        )

    @property
    def group_tokens(self) -> float:
        """What a learner computes for one group: the prompt once, each answer once."""
        return self.prompt_tokens + self.human_tokens + self.trained_answers * self.answer_tokens

    def draw_length(self, random_numbers: random.Random) -> int:
        """Of one answer: every token ends it with the same probability, up to `max_new_tokens`."""
        end = self.end_probability
        if end <= 0.0:
            return self.max_new_tokens
        tokens = math.ceil(math.log(1.0 - random_numbers.random()) / math.log(1.0 - end)) if end < 1.0 else 1
        return min(max(1, tokens), self.max_new_tokens)

    @cached_property
    def end_probability(self) -> float:
        return end_probability(self.answer_tokens, self.max_new_tokens)


def end_probability(mean_tokens: float, longest: int) -> float:
    """p for which min(Geometric(p), longest) has this mean: (1 - (1 - p)^longest) / p."""
    if mean_tokens >= longest:
        return 0.0
    return _bisect(lambda p: (1.0 - (1.0 - p) ** longest) / p - mean_tokens, low=1e-9, high=1.0)


def _bisect(falling: Callable[[float], float], *, low: float, high: float) -> float:
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2

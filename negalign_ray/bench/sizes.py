"""How much work each section of the benchmark does."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """The defaults fit ten minutes on two idle cores with a model of 135 million parameters."""

    # sampler: orders x answers go to both arms in one call
    sampler_orders: int = 8
    sampler_answers: int = 4
    sampler_new_tokens: int = 48
    sampler_repeats: int = 3
    weight_repeats: int = 3
    # learner: two ranks of one thread
    learner_ranks: int = 2
    learner_tokens: int = 2048  # at least this many computed tokens per optimizer step
    learner_steps: int = 3  # measured, after one warm-up step
    matmul_size: int = 2048  # n of the n x n products that measure the ceiling
    matmul_s: float = 0.5  # at least this long per measurement
    # step: the strictly on-policy step, and the single-process loop beside it
    step_prompts: int = 4
    step_answers: int = 4
    step_new_tokens: int = 48
    measured_steps: int = 4  # after the warm-up steps; also of each run of `async`
    warmup_steps: int = 2
    # async: the same step with staleness 0 and 1, one thread per role
    async_prompts: int = 4
    async_answers: int = 4
    async_new_tokens: int = 24

"""Settings and sizes with which a benchmark of the toy model takes seconds."""

from typing import Any

from negalign_ray.bench.sizes import Sizes

TOY_SETTINGS: dict[str, Any] = {  # its tokenizer makes about a token per letter
    "data": {"path": "quickstart", "max_prompt_tokens": 512, "max_response_tokens": 512, "on_bad_row": "skip"},
    "sampling": {"instructions": None, "num_samples": 2, "max_new_tokens": 8},
    "samplers": {"kv_cache_gib": 0.1},
    "learners": {"max_row_tokens": 1024},
}
TOY_SIZES = Sizes(
    sampler_orders=2,
    sampler_answers=2,
    sampler_new_tokens=8,
    sampler_repeats=2,
    weight_repeats=1,
    learner_tokens=200,
    learner_steps=2,
    matmul_size=64,
    matmul_s=0.01,
    step_prompts=2,
    step_answers=2,
    step_new_tokens=8,
    measured_steps=2,
    warmup_steps=1,
    async_prompts=2,
    async_answers=2,
    async_new_tokens=8,
)

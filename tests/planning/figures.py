"""Figures of a bench in its own layout, in round numbers, and plans that need no model."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from negalign_ray.actors.packing import Node
from negalign_ray.actors.plan import Plan
from negalign_ray.bench.learner import LearnerFigures
from negalign_ray.bench.overlap import AsyncFigures
from negalign_ray.bench.sampler import SamplerFigures
from negalign_ray.bench.short_run import RunFigures, Stage
from negalign_ray.bench.sizes import Sizes
from negalign_ray.bench.step import StepFigures, YardstickFigures
from negalign_ray.data.load import LoadedData
from negalign_ray.planning.costs import Costs, Line
from negalign_ray.settings import load_config
from tests.loops.fakes import make_prompt

SIZES = Sizes()  # step: 4 prompts x 4 answers x 48 tokens; async: 24 tokens


def run_figures(*, threads: int, sampler_s: float, reference_s: float, learner_s: float, tokens: float) -> RunFigures:
    stages = {
        "weights": Stage(0.5, None),
        "sampler": Stage(sampler_s, None),
        "scorer": Stage(0.02, None),
        "reference": Stage(reference_s, None),
        "learner": Stage(learner_s, None),
        "gather": Stage(0.25, None),
    }
    roles = ("samplers", "references", "learners")
    return RunFigures(
        step_s=1.0,
        steps_s=(1.0,),
        orchestration_s=0.0,
        orchestration_frac=0.0,
        stages=stages,
        sampled_tokens=0.5 * 4 * 4 * (48 if threads == 2 else 24),
        learner_tokens=tokens,
        peak_memory_bytes={},
        threads=dict.fromkeys(roles, threads),
        staleness=0,
        warmup_steps=2,
    )


def bench_figures(*sections: str, model: str = "toy") -> dict[str, Any]:
    """As `bench --json` writes them. 2 threads, 16 sequences: 2 s a round; 32: 3 s. So 1 s + 1/16 s a sequence."""
    step = run_figures(threads=2, sampler_s=96.0, reference_s=2.0, learner_s=10.0, tokens=1000.0)
    one_thread = run_figures(threads=1, sampler_s=96.0, reference_s=3.0, learner_s=9.0, tokens=500.0)
    made: dict[str, Any] = {
        "sampler": SamplerFigures(1.0, 10.0, 10.0, 144.0, 32, 48, 2, "float32", 3, 0.75, 0.25, 4_000_000, 3),
        "learner": LearnerFigures(
            0.5, 1.0, 2.0, 2.0, 2.0, "float32", 100.0, 17.0, 2000, 10**9, 2, threads=1, zero_stage=2, repeats=3,
            peak_memory_bytes=0,
        ),
        "step": StepFigures(step, YardstickFigures(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2), 2),
        "async": AsyncFigures(0.5, 0.5, 1.0, 1.0, asynchronous=one_thread, synchronous=one_thread),
    }  # fmt: skip
    return {
        "model": model,
        "sizes": asdict(SIZES),
        "sections": {name: asdict(made[name]) for name in sections or made},
    }


def make_plan_of(*overrides: str, num_prompts: int = 8) -> Plan:
    """Of D2O on prompts of 3 tokens with one bad answer of 3 tokens; no model, no files."""
    config = load_config(overrides=overrides)
    prompts = tuple(make_prompt(prompt_id) for prompt_id in range(num_prompts))
    data = LoadedData(prompts, (), (), cast(Any, None), None, 0, 0)
    nowhere = Path("nowhere")
    return Plan(
        config=config,
        model_path=nowhere,
        rpos_path=nowhere,
        rneg_path=nowhere,
        sampler_dtype="float32",
        learner_dtype="float32",
        stop_ids=(),
        chat_template=None,
        data=data,
        benign=(),
        probes=None,
        instructions=(),
        instruction_tokens=0,
    )


# 4 groups of 2 answers of 10 tokens: 8 sequences, 26 tokens a group (3 + 3 + 20), 104 a step.
SETTINGS = (
    "learners.groups_per_step=4",
    "sampling.num_samples=2",
    "sampling.max_new_tokens=10",
    "sampling.online_from_step=0",
    "sampling.instructions=null",
    "sampling.buffer_groups=64",
    'scorers.heads=[{"name": "harm", "kind": "python", "target": "a:b"}]',
)
# sample 8 s a round = 80 s, score 1 s, price 10.4 s, learn 52 s
COSTS = Costs(
    decode_round=Line(0.0, 1.0),
    score_groups=Line(0.0, 0.25),
    price_tokens=Line(0.0, 0.1),
    learn_tokens=Line(0.0, 0.5),
    weights_s=2.0,
    gather_s=1.0,
    answer_frac=1.0,
)
ROOMY = (Node("node-0", 64.0),)

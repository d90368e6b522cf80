"""One strictly on-policy step of the whole system, and the same step in the single-process yardstick.

The yardstick is timed before and after our run, so that a machine that gets slower meanwhile slows both. It computes in
the type that our learner computes in: where bfloat16 is emulated, a loop in it would be an easy victim.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import ray

from negalign_ray.actors.plan import Plan, make_plan
from negalign_ray.bench.machine import num_cores
from negalign_ray.bench.measure import BENCH_SETTINGS, with_settings
from negalign_ray.bench.short_run import RunFigures, short_run
from negalign_ray.bench.sizes import Sizes
from negalign_ray.bench.work import next_orders, order_factory
from negalign_ray.bench.yardstick import YardstickStep, make_yardstick
from negalign_ray.config import Config

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class YardstickFigures:
    speedup: float  # seconds here over seconds of our step
    seconds: float  # median step
    generate_s: float
    train_s: float
    sampled_tokens: float
    trained_tokens: float
    repeats: int


@dataclass(frozen=True, slots=True)
class StepFigures:
    run: RunFigures
    yardstick: YardstickFigures
    yardstick_threads: int


def measure_step(config: Config, sizes: Sizes, run_dir: Path) -> StepFigures:
    """Needs a Ray cluster, and D2O as method: it is what the yardstick computes."""
    threads = {"threads": num_cores()}  # the roles take turns, so each may use every core
    settings = {
        "method": {"name": "d2o"},
        "sampling": {"num_samples": sizes.step_answers, "max_new_tokens": sizes.step_new_tokens, "staleness": 0},
        "samplers": threads,
        "references": threads,
        "learners": {**threads, "groups_per_step": sizes.step_prompts},
    }
    bench_settings = {"run": {"dir": run_dir, "name": "bench-yardstick"}}
    plan = make_plan(with_settings(config, BENCH_SETTINGS, settings, bench_settings))
    factory = order_factory(plan, num_samples=sizes.step_answers)
    before = _time_yardstick(plan, factory, sizes)
    run = short_run(config, sizes, run_dir, name="bench-step", settings=settings)
    after = _time_yardstick(plan, factory, sizes)
    return StepFigures(run=run, yardstick=_figures([before, after], step_s=run.step_s), yardstick_threads=num_cores())


def _time_yardstick(plan: Plan, factory: Any, sizes: Sizes) -> YardstickStep:
    """One step of a fresh process, after a warm-up with a single prompt."""
    log.info("yardstick in %s", plan.learner_dtype)
    yardstick = make_yardstick(plan, dtype=plan.learner_dtype, threads=num_cores())
    deadline_s = plan.config.deadlines.pull_s
    try:
        ray.get(yardstick.step.remote(next_orders(factory, 1)), timeout=deadline_s)
        return ray.get(yardstick.step.remote(next_orders(factory, sizes.step_prompts)), timeout=deadline_s)
    finally:
        ray.kill(yardstick)


def _figures(steps: list[YardstickStep], *, step_s: float) -> YardstickFigures:
    seconds = median(step.seconds for step in steps)
    return YardstickFigures(
        speedup=seconds / step_s,
        seconds=seconds,
        generate_s=median(step.generate_s for step in steps),
        train_s=median(step.train_s for step in steps),
        sampled_tokens=median(step.sampled_tokens for step in steps),
        trained_tokens=median(step.trained_tokens for step in steps),
        repeats=len(steps),
    )

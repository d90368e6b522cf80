"""Short real runs through `actors.run.train`, read back as seconds per stage and step."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from negalign_ray.actors.run import train
from negalign_ray.bench.measure import BENCH_SETTINGS, median_ratio, with_settings
from negalign_ray.bench.memory import PeakMemory
from negalign_ray.bench.sizes import Sizes
from negalign_ray.config import Config
from negalign_ray.metrics import Row, read_metrics

log = logging.getLogger(__name__)

# The stages that a strictly on-policy step passes through one after the other.
STAGE_KEYS = {
    "weights": "sampler/weights_s",
    "sampler": "sampler/busy_s",
    "scorer": "scorer/busy_s",
    "reference": "reference/busy_s",
    "learner": "learner/compute_s",
    "gather": "learner/gather_s",
}


@dataclass(frozen=True, slots=True)
class Stage:
    """Medians over the measured steps. Tokens are those of the groups that passed through (sampler: new ones)."""

    seconds: float
    tokens_per_s: float | None  # None: the stage moves no tokens


@dataclass(frozen=True, slots=True)
class RunFigures:
    step_s: float  # median time from one finished optimizer step to the next
    steps_s: tuple[float, ...]
    orchestration_s: float | None  # median of what no stage was busy in; None where stages overlap (staleness > 0)
    orchestration_frac: float | None
    stages: dict[str, Stage]
    sampled_tokens: float  # per step, median
    learner_tokens: float
    peak_memory_bytes: dict[str, int]  # per role
    threads: dict[str, int]
    staleness: int
    warmup_steps: int


def short_run(config: Config, sizes: Sizes, run_dir: Path, *, name: str, settings: dict[str, Any]) -> RunFigures:
    """Train for a few steps without evaluation and leave the first out. Needs a Ray cluster for the memory figures."""
    num_steps = sizes.warmup_steps + sizes.measured_steps
    common = {
        "run": {"dir": run_dir, "name": name},
        "sampling": {"online_from_step": 0, "schedule": "online", "reward_gate": None},
        "samplers": {"num": 1},
        "learners": {"num": 1, "steps": num_steps, "mismatch_every": 0, "lr_schedule": "constant"},
    }
    resolved = with_settings(config, BENCH_SETTINGS, common, settings)
    log.info("%s: %d steps, staleness %d", name, num_steps, resolved.sampling.staleness)
    memory = PeakMemory()
    train(resolved, on_status=lambda phase, status: memory.look())
    return figures_of(
        read_metrics(resolved.run_dir),
        warmup_steps=sizes.warmup_steps,
        staleness=resolved.sampling.staleness,
        threads={role: getattr(resolved, role).threads for role in ("samplers", "references", "learners")},
        peak_memory_bytes=memory.bytes_by_role,
    )


def figures_of(
    rows: Sequence[Row],
    *,
    warmup_steps: int,
    staleness: int,
    threads: dict[str, int],
    peak_memory_bytes: dict[str, int],
) -> RunFigures:
    """`rows` are those of metrics.jsonl; a step lasts from the row before it to its own, so row 0 is warm-up always."""
    assert warmup_steps >= 1, "the first step has no row before it"
    measured = rows[warmup_steps:]
    before = rows[warmup_steps - 1 : -1]
    steps_s = tuple(_value(row, "time_s") - _value(last, "time_s") for last, row in zip(before, measured, strict=True))
    unblamed = [
        step_s - sum(_value(row, key) for key in STAGE_KEYS.values())
        for step_s, row in zip(steps_s, measured, strict=True)
    ]
    return RunFigures(
        step_s=median(steps_s),
        steps_s=steps_s,
        orchestration_s=None if staleness else median(unblamed),
        orchestration_frac=None if staleness else median_ratio(unblamed, steps_s),
        stages={name: _stage(measured, name, key) for name, key in STAGE_KEYS.items()},
        sampled_tokens=median(_sampled(row) for row in measured),
        learner_tokens=median(_value(row, "learner/tokens") for row in measured),
        peak_memory_bytes=dict(sorted(peak_memory_bytes.items())),
        threads=threads,
        staleness=staleness,
        warmup_steps=warmup_steps,
    )


def _stage(rows: Sequence[Row], name: str, key: str) -> Stage:
    seconds = [_value(row, key) for row in rows]
    if name in ("weights", "gather"):
        return Stage(median(seconds), None)
    tokens = [_sampled(row) if name == "sampler" else _value(row, "learner/tokens") for row in rows]
    rates = [count / busy_s for count, busy_s in zip(tokens, seconds, strict=True) if busy_s]
    return Stage(median(seconds), median(rates) if rates else None)


def _sampled(row: Row) -> float:
    return _value(row, "sampler/tokens_per_s") * _value(row, "sampler/busy_s")


def _value(row: Row, key: str) -> float:
    value = row[key]
    assert value is not None, f"{key} is missing in step {row['step']}"
    return float(value)

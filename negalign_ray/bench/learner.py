"""The learner against the machine's matrix rate: FLOP/s of real training steps over FLOP/s of bare products.

Ranks are processes of one thread that run the real training loop on fixed batches. Before every step all ranks measure
the ceiling at the same moment, with the same threads, in the learner's number type: both sides of the ratio see the
same machine.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import ray
import torch
import torch.distributed as dist
from torch import Tensor

from negalign_ray.actors.plan import Plan, make_plan
from negalign_ray.actors.processes import open_log, start_actor, thread_environment
from negalign_ray.bench.flops import ModelShape, train_flops
from negalign_ray.bench.machine import matmul_flops_per_s
from negalign_ray.bench.measure import BENCH_SETTINGS, median_ratio, with_settings
from negalign_ray.bench.sizes import Sizes
from negalign_ray.bench.work import groups_of_tokens
from negalign_ray.config import Config
from negalign_ray.data.collate import pack_rows, share_of
from negalign_ray.engines.deepspeed_engine import DeepSpeedEngine
from negalign_ray.loops.buffer import Handle
from negalign_ray.loops.roles import Batch, StepReport
from negalign_ray.loops.schedule import SamplingSchedule
from negalign_ray.loops.training import TrainingLoop
from negalign_ray.records import Group

log = logging.getLogger(__name__)

WARMUP_STEPS = 1
GIGA = 1e9


@dataclass(frozen=True, slots=True)
class LearnerFigures:
    learner_frac_of_ceiling: float  # median over steps of achieved / ceiling
    achieved_gflops: float  # all ranks together, forward, backward and optimizer
    ceiling_gflops: float  # all ranks together, in `compute_dtype`
    fp32_matmul_gflops: float
    bf16_matmul_gflops: float
    compute_dtype: str
    tokens_per_s: float
    seconds: float  # of one step, the slowest rank's
    num_tokens: int  # computed per step
    flops: int  # counted per step, see bench/flops.py
    num_ranks: int
    threads: int  # per rank
    zero_stage: int
    repeats: int
    peak_memory_bytes: int  # of the larger rank


@dataclass(frozen=True, slots=True)
class _RankFigures:
    ceilings: list[float]  # FLOP/s before each step
    compute_s: list[float]
    fp32_flops_per_s: float
    bf16_flops_per_s: float
    peak_memory_bytes: int


def measure_learner(config: Config, sizes: Sizes, run_dir: Path) -> LearnerFigures:
    """Needs a Ray cluster."""
    plan = _plan(config, sizes, run_dir)
    shape = ModelShape.of(plan.model_path)
    groups = groups_of_tokens(
        plan.data.train,
        min_tokens=sizes.learner_tokens,
        num_samples=max(1, plan.num_samples),
        new_tokens=plan.config.sampling.max_new_tokens,
        vocab_size=shape.vocab_size,
    )
    log.info("learner: %d ranks, %d steps of %d groups", sizes.learner_ranks, sizes.learner_steps, len(groups))
    ranks = _train(plan, groups, sizes, run_dir)
    flops, num_tokens = _count(plan, shape, groups, world_size=sizes.learner_ranks)
    seconds = [max(times) for times in zip(*(rank.compute_s for rank in ranks), strict=True)][WARMUP_STEPS:]
    ceilings = [sum(rates) for rates in zip(*(rank.ceilings for rank in ranks), strict=True)][WARMUP_STEPS:]
    achieved = [flops / step_s for step_s in seconds]
    return LearnerFigures(
        learner_frac_of_ceiling=median_ratio(achieved, ceilings),
        achieved_gflops=median(achieved) / GIGA,
        ceiling_gflops=median(ceilings) / GIGA,
        fp32_matmul_gflops=sum(rank.fp32_flops_per_s for rank in ranks) / GIGA,
        bf16_matmul_gflops=sum(rank.bf16_flops_per_s for rank in ranks) / GIGA,
        compute_dtype=plan.learner_dtype,
        tokens_per_s=num_tokens / median(seconds),
        seconds=median(seconds),
        num_tokens=num_tokens,
        flops=flops,
        num_ranks=sizes.learner_ranks,
        threads=plan.config.learners.threads,
        zero_stage=plan.config.learners.zero_stage,
        repeats=len(seconds),
        peak_memory_bytes=max(rank.peak_memory_bytes for rank in ranks),
    )


def _plan(config: Config, sizes: Sizes, run_dir: Path) -> Plan:
    settings = {
        "run": {"dir": run_dir, "name": "bench-learner"},
        "sampling": {"online_from_step": WARMUP_STEPS + sizes.learner_steps + 1},  # no step publishes but the last
        "learners": {
            "num": sizes.learner_ranks,
            "threads": 1,
            "steps": WARMUP_STEPS + sizes.learner_steps,
            "groups_per_step": sizes.learner_ranks,
            "mismatch_every": 0,
            "lora": None,
        },
    }
    return make_plan(with_settings(config, BENCH_SETTINGS, settings))


def _train(plan: Plan, groups: Sequence[Group], sizes: Sizes, run_dir: Path) -> list[_RankFigures]:
    environment = thread_environment(str(plan.config.learners.threads)) | {"DS_ACCELERATOR": "cpu"}
    options = {"runtime_env": {"env_vars": environment}}
    actors = [
        start_actor(_Rank, options, plan, rank=rank, meeting_point=run_dir / "ranks")
        for rank in range(sizes.learner_ranks)
    ]
    calls = [actor.train.remote(groups, sizes) for actor in actors]
    try:
        return ray.get(calls, timeout=plan.config.deadlines.pull_s)
    finally:
        for actor in actors:
            ray.kill(actor)


def _count(plan: Plan, shape: ModelShape, groups: Sequence[Group], *, world_size: int) -> tuple[int, int]:
    """(FLOPs, computed tokens) of one step, over the rows that the ranks really make."""
    learners = plan.config.learners
    lengths = [group.num_tokens for group in groups]
    flops = num_tokens = 0
    for rank in range(world_size):
        share = share_of(lengths, rank=rank, world_size=world_size, micro_batch_tokens=learners.micro_batch_tokens)
        for indices in share:
            rows = pack_rows([groups[i] for i in indices], max_row_tokens=learners.max_row_tokens)
            flops += train_flops(shape, rows)
            num_tokens += rows.num_tokens
    return flops, num_tokens


@ray.remote(num_cpus=0)
class _Rank:
    """One learner rank, without Ray Train and without a conductor."""

    def __init__(self, plan: Plan, *, rank: int, meeting_point: Path) -> None:
        self._plan, self._rank = plan, rank
        self._engine = _start_engine(plan, rank=rank, meeting_point=meeting_point)

    def train(self, groups: Sequence[Group], sizes: Sizes) -> _RankFigures:
        config = self._plan.config
        source = _FixedSource(groups, dtype=self._engine.dtype, sizes=sizes)
        TrainingLoop(
            learner=self._engine,
            source=source,
            method=self._plan.method,
            method_config=config.method,
            config=config.learners,
            schedule=SamplingSchedule.from_config(config.sampling),
            rank=self._rank,
            world_size=config.learners.num,
            save_samples=lambda step, trained: None,
            reward=self._plan.reward,
        ).run()
        return _RankFigures(
            ceilings=source.ceilings,
            compute_s=source.compute_s,
            fp32_flops_per_s=_together(torch.float32, size=sizes.matmul_size // 2, min_s=sizes.matmul_s),
            bf16_flops_per_s=_together(torch.bfloat16, size=sizes.matmul_size // 2, min_s=sizes.matmul_s),
            peak_memory_bytes=self._engine.peak_memory_bytes(),
        )


def _start_engine(plan: Plan, *, rank: int, meeting_point: Path) -> DeepSpeedEngine:
    # Outside the actor class: cloudpickle takes `config` in code that names torch.distributed for its submodule of that
    # name, which cannot be pickled.
    learners = plan.config.learners
    open_log(plan.config.run_dir, f"learner-{rank}")
    torch.set_num_threads(learners.threads)
    meeting_url = meeting_point.absolute().as_uri()
    dist.init_process_group("gloo", init_method=meeting_url, rank=rank, world_size=learners.num)
    dtype = getattr(torch, plan.learner_dtype)
    return DeepSpeedEngine(plan.model_path, config=learners, dtype=dtype, seed=plan.config.run.seed)


class _FixedSource:
    """A BatchSource with the same groups at every step; it measures the ceiling while the loop waits for them."""

    def __init__(self, groups: Sequence[Group], *, dtype: torch.dtype, sizes: Sizes) -> None:
        self._handles = tuple(Handle(group, group.card()) for group in groups)
        self._dtype, self._sizes = dtype, sizes
        self.ceilings: list[float] = []
        self.compute_s: list[float] = []

    def pull(self, step: int) -> Batch:
        self.ceilings.append(_together(self._dtype, size=self._sizes.matmul_size, min_s=self._sizes.matmul_s))
        return Batch(step, self._handles)

    def fetch(self, handles: Sequence[Handle]) -> list[Group]:
        return [handle.ref for handle in handles]

    def publish(self, version: int, tensors: list[tuple[str, Tensor]]) -> None:
        """There is no sampler."""

    def report(self, report: StepReport) -> None:
        assert math.isfinite(report.sums["learner/loss"])
        self.compute_s.append(report.values["learner/compute_s"])


def _together(dtype: torch.dtype, *, size: int, min_s: float) -> float:
    """This rank's FLOP/s while all ranks multiply."""
    dist.barrier()
    rate = matmul_flops_per_s(dtype, size=size, min_s=min_s)
    dist.barrier()
    return rate

"""One optimizer step, top to bottom: what every learner rank runs.

pull batch --> my share, in micro-batches --> log-probs --> loss --> backward ... --> optimizer step
     ^                                                                                     |
     +-- report (loss, seconds) <-- publish weights, version + 1 <-------------------------+
"""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from negalign_ray.config import LearnersConfig
from negalign_ray.data.collate import share_of
from negalign_ray.errors import NonFiniteError
from negalign_ray.loops.behaviours import by_behaviour, figures
from negalign_ray.loops.mismatch import mismatch_nats
from negalign_ray.loops.roles import Batch, BatchSource, Learner, StepReport
from negalign_ray.loops.schedule import SamplingSchedule
from negalign_ray.loops.vitals import logprob_of, sample_vitals
from negalign_ray.methods import Method, Needs
from negalign_ray.methods.groups import LossOutput, RewardSource, build_group_tensors
from negalign_ray.records import Group

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _MicroBatch:
    output: LossOutput
    figures: dict[str, Tensor]  # [G] each
    logprobs_N: Tensor  # of all responses in order, detached


@dataclass(frozen=True)
class TrainingLoop:
    """Everything a rank needs; `run` returns the number of optimizer steps done."""

    learner: Learner
    source: BatchSource
    method: Method
    method_config: object
    config: LearnersConfig
    schedule: SamplingSchedule
    rank: int
    world_size: int
    save_samples: Callable[[int, Sequence[Group]], None]  # step, groups this rank trained on
    reward: RewardSource | None = None  # what the method trains on, where it needs rewards
    weight_change_sq: Callable[[], float] | None = None  # this rank's part of ||W - W0||^2; None = not measured
    followed: Mapping[str, Sequence[Group]] = field(default_factory=dict)  # fixed answers of each kind, and how often
    follow_every: int = 10  # (steps) their log-prob is measured

    keep: Callable[[int], bool] = lambda version: False  # after every step: writes the learner's part of a checkpoint,
    # if one is due after this many steps, and says whether it did; collective

    def run(self, *, first_step: int = 0) -> int:
        for step in range(first_step, self.config.steps):
            started = time.perf_counter()
            batch = self.source.pull(step)
            if batch is None:
                return step
            self._train_step(batch, started)
        return self.config.steps

    def _train_step(self, batch: Batch, started: float) -> None:
        plan = share_of(
            [handle.card.num_tokens for handle in batch.handles],
            rank=self.rank,
            world_size=self.world_size,
            micro_batch_tokens=self.config.micro_batch_tokens,
        )
        fetched = [self.source.fetch([batch.handles[index] for index in indices]) for indices in plan]
        pulled = time.perf_counter()

        mine = [group for groups in fetched for group in groups]
        sums: dict[str, float] = defaultdict(float)
        counts: dict[str, int] = defaultdict(int)
        if self.config.mismatch_every and batch.step % self.config.mismatch_every == 0:
            self._measure_mismatch(mine, sums, counts)  # before the update: on-policy samples are this very version's
        if batch.step % self.follow_every == 0:
            self._follow(sums, counts)
        for number, groups in enumerate(fetched):
            done = self._backward(groups, batch, is_last=number == len(fetched) - 1)
            _accumulate(sums, counts, done.output)
            by_behaviour(sums, counts, groups, done.figures)
            sample_vitals(sums, counts, groups, done.logprobs_N, references=self._needs.references)
        stats = self.learner.step()
        if not math.isfinite(stats.grad_norm):
            raise self._non_finite("gradient norm", stats.grad_norm, mine, batch.step)
        computed = time.perf_counter()

        self.save_samples(batch.step, mine)
        gathered = time.perf_counter()
        version = batch.step + 1
        if self.schedule.publishes(version) or version == self.config.steps:
            weights = self.learner.gather_weights()
            if self.rank == 0:
                self.source.publish(version, weights)
        finished = time.perf_counter()
        kept = self.keep(version)
        written = time.perf_counter()

        sums["learner/tokens"] = sum(group.num_tokens for group in mine)
        if self.weight_change_sq is not None:
            sums["learner/weight_change_norm"] = self.weight_change_sq()
        values = {
            "learner/grad_norm": stats.grad_norm,
            "learner/lr": stats.lr,
            "learner/pull_wait_s": pulled - started,
            "learner/compute_s": computed - pulled,
            "learner/gather_s": finished - gathered,
            "learner/step_s": written - started,
        }
        if kept:
            values["learner/checkpoint_s"] = written - finished
        self.source.report(StepReport(batch.step, self.rank, dict(sums), dict(counts), values))

    @property
    def _needs(self) -> Needs:
        return self.method.needs(self.method_config)

    def _backward(self, groups: Sequence[Group], batch: Batch, *, is_last: bool) -> "_MicroBatch":
        """Forward and backward of one micro-batch. The one place that divides by the global group count."""
        needs = self._needs
        if needs.complements:
            logprobs_N, complements_N = self.learner.logprobs_and_complements(groups)
        else:
            logprobs_N, complements_N = self.learner.logprobs(groups), None
        tensors = build_group_tensors(
            groups,
            logprobs_N,
            complements_N=complements_N,
            references=needs.references,
            reward=self.reward,
            batch=[handle.card for handle in batch.handles],
        )
        output = self.method.loss(tensors, self.method_config)
        # An empty share adds a zero that depends on the parameters, so that this rank joins every collective.
        total = output.loss_G.sum() if groups else logprobs_N.sum() * 0.0
        if not torch.isfinite(total):
            raise self._non_finite("loss", total.item(), groups, batch.step)
        self.learner.backward(total / len(batch.handles), is_last=is_last)
        return _MicroBatch(output, figures(tensors, needs), logprobs_N.detach())

    def _measure_mismatch(self, groups: Sequence[Group], sums: dict[str, float], counts: dict[str, int]) -> None:
        """All ranks take part (the forward is collective), with an empty list when their share is empty."""
        total, num_tokens = mismatch_nats(self.learner, groups[:1])
        sums["learner/mismatch_nats"] = total
        counts["learner/mismatch_nats"] = num_tokens

    def _follow(self, sums: dict[str, float], counts: dict[str, int]) -> None:
        for kind, groups in self.followed.items():
            sums[f"learner/{kind}_logprob_nats"], counts[f"learner/{kind}_logprob_nats"] = logprob_of(
                self.learner,
                groups,
                rank=self.rank,
                world_size=self.world_size,
                micro_batch_tokens=self.config.micro_batch_tokens,
            )

    def _non_finite(self, what: str, value: float, groups: Sequence[Group], step: int) -> NonFiniteError:
        self.save_samples(step, groups)  # for the reader of the message: it is no longer done after the step
        ids = [group.order_id for group in groups]
        return NonFiniteError(
            f"{what} is {value} for the groups {ids} (rows samples/*.jsonl with these order ids); "
            "lower learners.lr, or set learners.dtype=float32",
            role="learner",
            rank=self.rank,
        )


def _accumulate(sums: dict[str, float], counts: dict[str, int], output: LossOutput) -> None:
    for name, values_G in {"loss": output.loss_G.detach(), **output.metrics_G}.items():
        applies_G = ~torch.isnan(values_G)  # NaN = the metric does not apply to this group
        sums[f"learner/{name}"] += float(_sum(values_G[applies_G]))
        counts[f"learner/{name}"] += int(applies_G.sum())


def _sum(values: Tensor) -> Tensor:
    return values.double().sum()

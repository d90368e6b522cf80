"""The conductor: one asyncio actor that runs the rollout loop, hands out batches, and writes the run's metrics."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from negalign_ray.actors.fleet import RayFleet
from negalign_ray.actors.plan import Plan
from negalign_ray.actors.processes import open_log
from negalign_ray.actors.wiring import make_orders, make_rollout
from negalign_ray.errors import NegalignError, StallError
from negalign_ray.loops.behaviours import samples_are_bad
from negalign_ray.loops.guards import Firing, Guards
from negalign_ray.loops.merge import merge_reports
from negalign_ray.loops.roles import Batch, StepReport
from negalign_ray.loops.rollout import Rollout
from negalign_ray.metrics import MetricsWriter
from negalign_ray.records import Generation, Prompt, SampleRequest, SamplingSpec, TokenIds
from negalign_ray.trackers import open_trackers

log = logging.getLogger(__name__)


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


@ray.remote(num_cpus=0, max_concurrency=256)  # type: ignore[call-overload]  # Ray's overloads lack it
class Conductor:
    def __init__(self, plan: Plan) -> None:
        config = plan.config
        open_log(config.run_dir, "conductor-0")
        self._plan, self._config = plan, config
        self._fleet = RayFleet(plan)
        self._metrics = MetricsWriter(config.run_dir, sinks=open_trackers(config))
        chat = plan.chat()

        contexts: dict[tuple[int, str | None], TokenIds] = {}

        def context_ids(prompt: Prompt, instruction: str | None) -> TokenIds:
            key = (prompt.prompt_id, instruction)
            if key not in contexts:
                contexts[key] = chat.prompt_ids(prompt.messages, instruction)
            return contexts[key]

        self._orders = make_orders(plan, context_ids=context_ids)
        self._rollout: Rollout | None = None
        self._reports: dict[int, list[StepReport]] = {}
        self._step = 0
        self._last_metrics: dict[str, float] = {}
        self._learner_error: NegalignError | None = None
        self._guards = Guards(
            config.guards, heads=config.scorers.heads, unlearns_own_answers=samples_are_bad(plan.needs)
        )
        self._firings: list[Firing] = []

    async def ready(self) -> bool:
        """Waits for every role; the rollout loop itself waits for `start`."""
        await asyncio.to_thread(self._fleet.wait_until_ready)
        self._rollout = make_rollout(self._plan, fleet=self._fleet, orders=self._orders)
        return True

    async def start(self) -> None:
        await self._loop.start()

    # -- the learners ------------------------------------------------------------------------------------------

    async def pull(self, step: int) -> Batch | None:
        deadline_s = self._config.deadlines.pull_s
        try:
            return await self._loop.pull(step, timeout_s=deadline_s)
        except TimeoutError:
            busy = f"{len(self._loop.buffer)} groups under way, {self._loop.buffer.num_ready} ready"
            raise StallError(
                f"the batch of step {step} was not ready within deadlines.pull_s={deadline_s:g} s ({busy}); "
                "see logs/sampler-*.log, or raise the deadline",
                role="conductor",
                weight_version=self._loop.sampler_version,
            ) from None

    async def publish(self, version: int, weights: list[Any]) -> None:
        """`weights` is a one-element list, so that the bundle stays in the object store."""
        await self._loop.publish(version, weights[0])

    async def report(self, report: StepReport) -> None:
        reports = self._reports.setdefault(report.step, [])
        reports.append(report)
        if len(reports) == self._config.learners.num:
            firings = self._finish_step(self._reports.pop(report.step))
            if any(firing.action == "stop" for firing in firings):
                await self._loop.stop()
            await self._loop.trained(report.step)

    def learner_failed(self, error: NegalignError) -> None:
        self._learner_error = self._learner_error or error

    def _finish_step(self, reports: Sequence[StepReport]) -> list[Firing]:
        step = reports[0].step
        batch = Batch(step, self._loop.buffer.take(step))
        self._last_metrics = merge_reports(reports, batch, rollout=self._loop)
        row = self._metrics.write(step + 1, self._last_metrics)
        self._step = step + 1
        log.info("step %d loss %.4f", step + 1, self._last_metrics["learner/loss"])
        firings = self._guards.observe(step + 1, row)
        for firing in firings:
            log.warning("%s: %s", firing.action, firing.reason)
        self._firings += firings
        return firings

    # -- the driver --------------------------------------------------------------------------------------------

    async def generate(self, requests: Sequence[SampleRequest], spec: SamplingSpec) -> list[Generation]:
        """Spread over the samplers, in order; for evaluation before and after the run."""
        num = self._fleet.num_samplers
        size = -(-len(requests) // num)
        parts = [requests[start : start + size] for start in range(0, len(requests), size)]
        answers = await asyncio.gather(*(self._fleet.generate(rank, part, spec) for rank, part in enumerate(parts)))
        return [generation for part in answers for generation in part]

    async def wait_for_version(self, version: int) -> None:
        await self._loop.wait_for_version(version, timeout_s=self._config.deadlines.weights_s)

    async def stop(self) -> None:
        await self._loop.stop()

    def status(self) -> Status:
        rollout = self._rollout
        guide = rollout.figures[max(rollout.figures)] if rollout and rollout.figures else {}
        return Status(
            step=self._step,
            num_steps=self._config.learners.steps,
            sampler_version=rollout.sampler_version if rollout else 0,
            ready_groups=rollout.buffer.num_ready if rollout else 0,
            buffered_groups=len(rollout.buffer) if rollout else 0,
            metrics={**guide, **self._last_metrics},  # of the newest iteration: only its first step's row has them
            fatal=self._learner_error or (rollout.fatal if rollout else None),
            firings=tuple(self._firings),
            fit=rollout.fit if rollout else None,
        )

    async def close(self) -> dict[str, int]:
        """Ends open orders, kills the roles, and returns how every order ended."""
        self._metrics.close()
        outcomes: dict[str, int] = {}
        if self._rollout is not None:
            await self._rollout.close()
            ledger = self._rollout.buffer.ledger
            outcomes = {"issued": ledger.issued} | {str(key): count for key, count in ledger.outcomes.items()}
        self._fleet.kill()
        return outcomes

    @property
    def _loop(self) -> Rollout:
        assert self._rollout is not None, "ready() is awaited before anything else"
        return self._rollout

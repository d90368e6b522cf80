"""The conductor: one asyncio actor that runs the rollout loop, hands out batches, and writes the run's metrics."""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from negalign_ray.actors.elastic import Elastic, make_elastic
from negalign_ray.actors.fleet import RayFleet
from negalign_ray.actors.logs import LogFolder, read_record
from negalign_ray.actors.midrun import MidRunEvaluation, last_evaluated, start_midrun
from negalign_ray.actors.overview import Overview, make_overview
from negalign_ray.actors.plan import Plan
from negalign_ray.actors.processes import open_log, reason_of
from negalign_ray.actors.prometheus import PrometheusSink
from negalign_ray.actors.roster import LearnerRoster
from negalign_ray.actors.saving import read_rollout
from negalign_ray.actors.sealing import Sealer
from negalign_ray.actors.status import Ending, Status
from negalign_ray.actors.wiring import make_orders, make_rollout, remembered_contexts
from negalign_ray.engines.weight_transfer import Meeting, Offer
from negalign_ray.engines.weights import WeightBundle
from negalign_ray.errors import ConfigError, NegalignError, StallError
from negalign_ray.evaluation.training_notes import FIRST_STEPS, pairs_warning
from negalign_ray.events import Event, EventKind, EventLog, read_events
from negalign_ray.loops.behaviours import samples_are_bad
from negalign_ray.loops.buffer import Handle
from negalign_ray.loops.guards import Firing, Guards
from negalign_ray.loops.merge import merge_reports
from negalign_ray.loops.pace import PACE_STEPS
from negalign_ray.loops.roles import Batch, StepReport
from negalign_ray.loops.rollout import Rollout
from negalign_ray.loops.scaling import Team
from negalign_ray.loops.watchdog import Activity, suspects
from negalign_ray.metrics import MetricsWriter, Row, read_metrics
from negalign_ray.records import Generation, SampleRequest, SamplingSpec
from negalign_ray.trackers import open_trackers

log = logging.getLogger(__name__)


@ray.remote(num_cpus=0)
class Conductor:
    def __init__(self, plan: Plan, resume_from: Path | None = None) -> None:
        """`resume_from`: the folder of the checkpoint to go on from, whose files have been checked."""
        config = plan.config
        open_log(config.run_dir, "conductor-0")
        self._plan, self._config = plan, config
        self._prometheus = None
        if config.run.prometheus:
            self._prometheus = PrometheusSink(
                config.run.name, num_steps=config.learners.steps, activities=self.activities
            )
        sinks = [*open_trackers(config), *([self._prometheus] if self._prometheus else [])]
        self._metrics = MetricsWriter(config.run_dir, sinks=sinks)
        self._events = EventLog(config.run_dir, earlier_s=self._metrics.earlier_s)
        self._fleet = RayFleet(plan, record=self._record)
        self._orders = make_orders(plan, context_ids=remembered_contexts(plan.chat()))
        self._rollout: Rollout | None = None
        self._elastic: Elastic | None = None
        self._reports: dict[int, list[StepReport]] = {}
        # Of the last step. Learners let go of it when they get the next one; Ray 2.60 frees a small object only if the
        # last reference to it is its owner's, which is this process.
        self._held: Batch | None = None
        self._step = 0
        self._last_metrics: dict[str, float] = {}
        self._phase, self._is_stopping = "starting", False
        self._starts_anew, self._is_decided = False, False  # whether all ranks end so, and whether one was told
        self._rows: deque[Row] = deque(maxlen=PACE_STEPS + 1)
        self._learners = LearnerRoster(self._fleet.book, record=self._record)
        self._guards = Guards(
            config.guards, heads=config.scorers.heads, unlearns_own_answers=samples_are_bad(plan.needs)
        )
        self._firings: list[Firing] = []
        self._resume_from = resume_from
        self._placed, self._is_ready, self._started = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._sealer = Sealer(config, record=self._record)
        self._stepped = asyncio.Condition()
        self._midrun: MidRunEvaluation | None = None

    async def ready(self) -> bool:
        """Waits for every role but the learners, who start meanwhile; the rollout loop itself waits for `start`."""
        await asyncio.to_thread(self._fleet.reserve)
        self._placed.set()
        await asyncio.to_thread(self._fleet.wait_until_ready)
        self._rollout = make_rollout(self._plan, fleet=self._fleet, orders=self._orders, record=self._record)
        teams: dict[str, Team] = {"samplers": self._rollout.crew, **self._fleet.teams}
        self._elastic = make_elastic(self._plan, teams, record=self._record)
        if self._resume_from is not None:
            await asyncio.to_thread(self._restore, self._resume_from)
        if self._config.evaluation.every:
            self._fleet.make_room_for("evaluation scorer")
            rows = read_metrics(self._config.run_dir) if self._resume_from is not None else []
            last = last_evaluated(rows, step=self._step)
            self._midrun = await asyncio.to_thread(
                start_midrun, self._plan, ask=self._ask_undisturbed, write=self._metrics.add, last=last
            )
        if self._is_stopping:
            await self._loop.stop()
        self._is_ready.set()
        return True

    def _restore(self, checkpoint: Path) -> None:
        state, groups = read_rollout(checkpoint, self._plan.data.train)
        self._loop.restore(state, [Handle(ray.put(group), group.card()) for group in groups])
        self._step = state.step
        self._sealer.goes_on_from(state.step)
        for row in read_metrics(self._config.run_dir):
            self._guards.observe(int(row["step"] or 0), row)  # they know again what they knew
        self._guards.rearm()
        self._record(Event(EventKind.RESUME, f"the run goes on from {checkpoint.name}"))

    async def start(self) -> None:
        self._started.set()
        await self._loop.start()
        due = self._loop.schedule.due(self._step)
        # Otherwise the learners publish it, or it is the initial model.
        if self._resume_from is not None and 0 < due < self._step:
            bundle = await asyncio.to_thread(WeightBundle.load, self._resume_from)
            await self._loop.publish(due, ray.put(bundle))

    async def scale(self, role: str, num: int) -> str:
        """More or fewer samplers, scorers or references from now on; what that means (see Elastic.scale)."""
        if self._elastic is None:
            raise ConfigError(f"scale {role}={num}: the run is starting; ask again when its roles are ready.")
        return await self._elastic.scale(role, num)

    def place_s(self) -> float:
        """How long `scale` may wait for room."""
        return self._config.deadlines.place_s

    async def make_room_for(self, role: str) -> None:
        """Called when somebody is about to reserve it himself: Ray Train, for learners."""
        await self._placed.wait()
        self._fleet.make_room_for(role)

    # -- the learners ------------------------------------------------------------------------------------------

    def join(self, rank: int, actor: Any) -> None:
        self._learners.join(rank, actor)

    async def pull(self, step: int, rank: int) -> Batch | None:
        await self._is_ready.wait()
        deadline_s = self._config.deadlines.pull_s
        self._learners.waits(rank, f"waits for the batch of step {step}")
        try:
            batch = await self._loop.pull(step, timeout_s=deadline_s)
        except TimeoutError:
            busy = f"{len(self._loop.buffer)} groups under way, {self._loop.buffer.num_ready} ready"
            busy += "".join(f"; {each}" for each in suspects(self.activities())[:1])
            raise StallError(
                f"the batch of step {step} was not ready within deadlines.pull_s={deadline_s:g} s ({busy}); "
                "see logs/sampler-*.log, or raise the deadline",
                role="conductor",
                weight_version=self._loop.sampler_version,
            ) from None
        self._learners.works(rank, f"trains on step {step}" if batch else "ends")
        return batch

    async def publish(self, version: int, weights: list[Any], offer: Offer | None = None) -> None:
        """`weights` is a one-element list, so that the bundle stays in the object store; `offer` says whether samplers
        can get it another way, too."""
        await self._started.wait()  # before that the initial model is evaluated, though a resumed learner is there
        await self._fleet.meetings.hold(offer, lambda kept: self._loop.publish(version, weights[0], kept))
        if self._midrun is not None and self._sealer.back_to is None:
            self._midrun.offer(version)

    async def meeting(self, version: int) -> Meeting | None:
        """For learner rank 0, whose `publish` is under way: the NCCL group to send that version to, if there is one."""
        return await self._fleet.meetings.of(version)

    async def report(self, report: StepReport) -> None:
        self._learners.works(report.rank, f"has trained on step {report.step}")
        reports = self._reports.setdefault(report.step, [])
        reports.append(report)
        if len(reports) == self._config.learners.num:
            firings = self._finish_step(self._reports.pop(report.step))
            if any(firing.ends_the_run for firing in firings):
                await self.stop()
            await self._loop.trained(report.step)
            config = self._config
            if config.checkpoints.due(self._step, num_steps=config.learners.steps):
                self._begin_save()
            async with self._stepped:
                self._stepped.notify_all()

    # -- checkpoints -------------------------------------------------------------------------------------------

    def _begin_save(self) -> asyncio.Task:
        replicas = self._elastic.changed if self._elastic else {}
        return self._sealer.begin(self._loop, self._step, metrics=self._last_metrics, replicas=replicas)

    async def seal(self) -> None:
        """For a run that is stopped: the checkpoint of the last step, whether or not one was due."""
        await self._begin_save()
        if self._loop.fatal is not None:
            raise self._loop.fatal

    async def ending(self, num_steps_done: int) -> Ending:
        """For every rank, when it is done. The answer is the same for all of them, so it waits for the last report."""
        async with self._stepped:
            await self._stepped.wait_for(lambda: self._step >= num_steps_done)
        if not self._is_decided:
            self._is_decided = True
            self._starts_anew &= not self._is_stopping and num_steps_done < self._config.learners.steps
        firing = next((firing for firing in self._firings if firing.action == "rollback"), None)
        back_to = None if firing is None else await self._sealer.go_back(firing.first_step, firing.reason)
        return Ending(back_to=None if back_to is None else back_to.path, starts_anew=self._starts_anew)

    async def outlive_learners(self) -> None:
        """Rank 0 is about to end, and with it the weights that it published: checkpoints under way have read them when
        this returns, and this process holds those of the samplers, which the evaluation to come may replace."""
        await self._sealer.settle()
        deadline_s = self._config.deadlines.weights_s

        async def copy(weights: Any) -> Any:
            return await asyncio.to_thread(lambda: ray.put(ray.get(weights, timeout=deadline_s)))

        try:
            await self._loop.outlive_learners(copy if self._config.evaluation.enabled else None)
        except RayError as error:  # they are needed only where a sampler fails
            log.warning("the last weights are not kept, so that no sampler can be replaced any more: %s", error)

    async def learner_failed(self, error: NegalignError, rank: int) -> None:
        await self._learners.failed(error, rank)

    def _finish_step(self, reports: Sequence[StepReport]) -> list[Firing]:
        step = reports[0].step
        batch = Batch(step, self._loop.buffer.take(step))
        self._held = batch
        self._last_metrics = merge_reports(reports, batch, rollout=self._loop) | self._fleet.sizes
        row = self._metrics.write(step + 1, self._last_metrics)
        self._rows.append(row)
        self._step = step + 1
        log.info("step %d loss %.4f", step + 1, self._last_metrics["learner/loss"])
        if step + 1 == FIRST_STEPS and (warning := pairs_warning(self._rows)):
            log.warning("%s", warning)
        if self._elastic is not None:
            self._elastic.observe(self._last_metrics, caught_up=self._loop.buffer.nothing_under_way)
        firings = self._guards.observe(step + 1, row)
        for firing in firings:
            log.warning("%s: %s", firing.action, firing.reason)
            self._record(Event(EventKind.GUARD, f"{firing.action}: {firing.reason}"))
        self._firings += firings
        return firings

    def _record(self, event: Event) -> None:
        """Where an event does not say the step and the samplers' version, they are those of now."""
        step = self._step if event.step is None else event.step
        version = event.weight_version
        if version is None and self._rollout is not None:
            version = self._rollout.sampler_version
        self._events.record(replace(event, step=step, weight_version=version))
        if self._prometheus is not None:
            self._prometheus.happened(event.kind)

    # -- the driver --------------------------------------------------------------------------------------------

    async def generate(self, requests: Sequence[SampleRequest], spec: SamplingSpec) -> list[Generation]:
        """Spread over the samplers, in order, each of them between its waves; for evaluation."""
        return await self._loop.crew.spread(requests, lambda rank, part: self._fleet.generate(rank, part, spec))

    async def _ask_undisturbed(
        self, requests: Sequence[SampleRequest], spec: SamplingSpec
    ) -> tuple[int, list[Generation]]:
        async with self._loop.undisturbed() as version:
            return version, await self.generate(requests, spec)

    async def wait_for_version(self, version: int) -> None:
        """Evaluations under way are waited for: new weights wait for them, too."""
        if self._midrun is not None:
            await self._midrun.settle()
        deadline_s = self._config.deadlines.weights_s
        try:
            await self._loop.wait_for_version(version, timeout_s=deadline_s)
        except TimeoutError:
            raise StallError(
                f"the samplers are still at version {self._loop.sampler_version}, not at {version}, after "
                f"deadlines.weights_s={deadline_s:g} s; raise it, or see logs/sampler-*.log",
                role="conductor",
            ) from None
        if self._midrun is not None:
            await self._midrun.end()

    async def stop(self) -> None:
        """The run ends after the step under way; one that is still starting, before its first."""
        self._is_stopping = True
        if self._rollout is not None:
            await self._rollout.stop()

    async def start_anew(self) -> None:
        """The learners end after the step under way, with a checkpoint that more of them can go on from."""
        self._starts_anew |= not self._is_decided
        await self._loop.stop()

    def status(self) -> Status:
        rollout = self._rollout
        guide = rollout.figures[max(rollout.figures)] if rollout and rollout.figures else {}
        back_to = self._sealer.back_to
        return Status(
            step=self._step,
            num_steps=self._config.learners.steps,
            sampler_version=rollout.sampler_version if rollout else 0,
            ready_groups=rollout.buffer.num_ready if rollout else 0,
            buffered_groups=len(rollout.buffer) if rollout else 0,
            metrics={**guide, **self._last_metrics},  # of the newest iteration: only its first step's row has them
            fatal=self._learners.error or (rollout.fatal if rollout else None),
            firings=tuple(self._firings),
            final_version=self._step if back_to is None else self._step + 1,
            rolled_back_to=None if back_to is None else back_to.step,
            fit=rollout.fit if rollout else None,
            replicas=self._elastic.numbers if self._elastic else {},
            moves=self._fleet.book.moves,
            num_learners=len(self._learners),
            starts_anew=self._is_decided and self._starts_anew,
            is_stopping=self._is_stopping,
        )

    def enter(self, phase: str) -> None:
        """What the driver does now, for `overview`."""
        self._phase = phase

    async def overview(self) -> Overview:
        return make_overview(
            self._config,
            phase=self._phase,
            is_stopping=self._is_stopping,
            step=self._step,
            rollout=self._rollout,
            serving=self._elastic.serving if self._elastic else {},
            activities=self.activities(),
            rows=tuple(self._rows),
            events=await asyncio.to_thread(read_events, self._config.run_dir),
        )

    def activities(self) -> tuple[Activity, ...]:
        """What every role is doing, as far as the conductor knows."""
        return self._fleet.book.activities()

    def log_sizes(self) -> dict[str, int]:
        """For those who do not see the run directory (see logs.py)."""
        return LogFolder(self._config.run_dir).sizes()

    def read_log(self, name: str, offset: int) -> bytes:
        return LogFolder(self._config.run_dir).read(name, offset)

    async def read_record(self, name: str, offset: int) -> bytes:
        return await asyncio.to_thread(read_record, self._config.run_dir, name, offset)

    async def finish_uploads(self) -> list[str]:
        """Waits for copies of checkpoints that are on their way; what went wrong with them, one line each."""
        return await self._sealer.finish()

    async def close(self, *, failed: bool = False) -> dict[str, int]:
        """Ends open orders, kills the roles, learners that are still there too, and returns how every order ended.

        `failed`: the run ended with an error; trackers that know failed runs are told.
        """
        if self._midrun is not None:
            self._midrun.cancel()
            await self._midrun.end()
        outcomes: dict[str, int] = {}
        if self._elastic is not None:
            await self._elastic.close()
        if self._rollout is not None:
            await self._rollout.close()
            ledger = self._rollout.buffer.ledger
            outcomes = {"issued": ledger.issued} | {str(key): count for key, count in ledger.outcomes.items()}
        self._fleet.kill()
        self._learners.kill()
        await asyncio.to_thread(self._close_metrics, failed)
        return outcomes

    def _close_metrics(self, failed: bool) -> None:
        try:
            self._metrics.close(failed=failed)
        except OSError as error:  # what did not fit onto the disk
            log.warning("metrics.jsonl: %s", reason_of(error))

    @property
    def _loop(self) -> Rollout:
        assert self._rollout is not None, "ready() is awaited before anything else"
        return self._rollout

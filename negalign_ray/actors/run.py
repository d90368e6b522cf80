"""A whole run from the driver's side.

plan --> cluster --> conductor (samplers, scorers, references) --> learners --> model/
                          |  before                        after  |
                          +---------- evaluation ------------------+--> summary.json
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from rich.console import RenderableType

from negalign_ray.actors.card import write_card
from negalign_ray.actors.cluster import cluster, placements, shared_cluster
from negalign_ray.actors.conductor import Status
from negalign_ray.actors.dry_run import describe
from negalign_ray.actors.evaluator import SIDES_FILE, Evaluation
from negalign_ray.actors.failures import explained, learner_failure, sigterm_interrupts
from negalign_ray.actors.growth import Growth
from negalign_ray.actors.host_memory import require_memory_here
from negalign_ray.actors.learner import make_trainer
from negalign_ray.actors.locate import namespace_of, require_idle
from negalign_ray.actors.plan import Plan, make_plan
from negalign_ray.actors.presence import announced, await_end, start_conductor
from negalign_ray.actors.processes import Background, free_resources, typed, wait_until_ready
from negalign_ray.actors.restarts import with_learners_that_fit, with_restarts
from negalign_ray.actors.results import BASE_FOLDER, create_run_dir, try_report, write_summary
from negalign_ray.actors.resume import Resumption, rewind
from negalign_ray.actors.stall import ANSWER_S, explain_stall
from negalign_ray.config import Config
from negalign_ray.engines.checkpoints import CheckpointStore
from negalign_ray.errors import NegalignError, ScoreError, StallError
from negalign_ray.evaluation.measure import Answered
from negalign_ray.evaluation.training_notes import training_notes
from negalign_ray.events import Event, EventKind, EventLog
from negalign_ray.loops.watchdog import Activity, Watchdog
from negalign_ray.metrics import read_metrics, time_so_far
from negalign_ray.records import Generation, SampleRequest, SamplingSpec

log = logging.getLogger(__name__)
CLOSE_S = 60.0  # for the end of a run: the conductor, then the learners

OnStatus = Callable[[str, Status | None], None]  # phase, what the conductor says


def ignore_status(phase: str, status: Status | None) -> None:
    """For callers that watch nothing."""


def train(config: Config, *, on_status: OnStatus = ignore_status, base_cache: Path | None = None) -> dict[str, Any]:
    """Align a model and return the summary that also stands in <run>/summary.json.

    Everything that can be checked is checked before Ray starts. Ctrl-C or SIGTERM ends the run after the step under
    way: the model and the figures of what was learned so far are kept. Runs from the same model may share a folder
    `base_cache`, so that it is evaluated once.
    """
    on_status("checking", None)
    plan = make_plan(config)
    with explained(plan.config):
        create_run_dir(plan.config)
        return _carry_through(plan, on_status, base_cache=base_cache)


def resume(resumption: Resumption, *, on_status: OnStatus = ignore_status) -> dict[str, Any]:
    """Go on from a checkpoint of a run that was stopped or cut short, which `find_checkpoint` has found."""
    on_status("checking", None)
    require_idle(resumption.config.run_dir)
    plan = make_plan(resumption.config)
    with explained(plan.config):
        rewind(resumption)
        return _carry_through(plan, on_status, resume_from=resumption.checkpoint.path)


def _carry_through(
    plan: Plan, on_status: OnStatus, *, base_cache: Path | None = None, resume_from: Path | None = None
) -> dict[str, Any]:
    started_s = time.perf_counter() - time_so_far(plan.config.run_dir)  # of a resumed run: what it took before
    write_card(plan)

    is_ending = threading.Event()

    def attempt(plan: Plan, resume_from: Path | None) -> dict[str, Any] | None:
        fitting = with_learners_that_fit(plan)
        growth = Growth(fitting, wanted=plan.config.learners.num)
        with cluster(fitting):
            return _Run(fitting, on_status, base_cache, resume_from, is_ending, growth).execute()

    with shared_cluster(namespace_of(plan.config.run.name)), announced(plan.config.run_dir), sigterm_interrupts():
        summary = with_restarts(plan, attempt, resume_from=resume_from, is_unwanted=is_ending.is_set)
    summary |= training_notes(read_metrics(plan.config.run_dir))
    summary["wall_s"] = time.perf_counter() - started_s
    write_summary(plan.config.run_dir, summary)
    try_report(plan.config)
    is_finished = summary["steps"] >= plan.config.learners.steps and summary["rolled_back_to"] is None
    if is_finished and not plan.config.checkpoints.keep_finished:
        CheckpointStore(plan.config.run_dir, plan.config.checkpoints).clear()
    return summary


def dry_run(config: Config) -> RenderableType:
    """Everything `train` checks before it starts anything, and what it would start."""
    plan = make_plan(config)
    require_memory_here(plan, placements(plan))
    return describe(plan)


def _guard_rows(status: Status) -> dict[str, Any]:
    """What the guards said; `stopped_by` is the one that ended the run early, or None."""
    stopped_by = next((asdict(firing) for firing in status.firings if firing.ends_the_run), None)
    return {
        "guards": [asdict(firing) for firing in status.firings],
        "stopped_by": stopped_by,
        "rolled_back_to": status.rolled_back_to,
    }


class _Run:
    def __init__(
        self,
        plan: Plan,
        on_status: OnStatus,
        base_cache: Path | None,
        resume_from: Path | None,
        is_ending: threading.Event,
        growth: Growth | None = None,
    ) -> None:
        """`is_ending` is set when nothing more is to be trained: somebody wants the run to end early, here or not,
        a guard does, or the learners are done. `growth`: None = the group of learners stays as it is."""
        self._growth = growth
        self._plan, self._config, self._on_status = plan, plan.config, on_status
        self._resume_from, self._is_ending = resume_from, is_ending
        base_cache = base_cache or plan.config.run_dir / BASE_FOLDER
        self._evaluation = None
        if plan.config.evaluation.enabled:
            self._evaluation = Evaluation(
                plan,
                base_path=plan.model_path,
                base_cache=base_cache,
                namespace=namespace_of(plan.config.run.name),
            )
        self._conductor: Any = None
        self._phase = "starting"
        self._trainer: Background | None = None
        self._events = EventLog(plan.config.run_dir, earlier_s=time_so_far(plan.config.run_dir))

    def execute(self) -> dict[str, Any] | None:
        """The summary; None = it has sealed a checkpoint, to start anew from it with more learners."""
        self._on_status("starting", None)
        self._conductor = start_conductor(self._plan, self._resume_from)
        try:
            self._trainer = Background(make_trainer(self._plan, self._conductor, resume_from=self._resume_from).fit)
            deadlines = self._config.deadlines
            # Its own start, a place for all roles, their start, that of a scorer for evaluations: each has a deadline.
            ready_s = 3 * deadlines.start_s + deadlines.place_s
            wait_until_ready({"conductor-0": self._conductor.ready.remote()}, deadline_s=ready_s)
            summary = self._evaluate_train_evaluate()
            failed_uploads = self._finish_uploads()
        except BaseException as error:
            ends = ", ".join(f"{number} {name}" for name, number in self._close(failed=True).items())
            reason = f"{type(error).__name__}: {error}; orders: {ends or 'unknown'}"
            self._events.record(Event(EventKind.FAILED, reason))
            raise
        orders = self._close()
        return None if summary is None else summary | {"failed_uploads": failed_uploads, "orders": orders}

    def _tell(self, phase: str, status: Status | None) -> None:
        """Whoever watches here, and through the conductor those who ask from elsewhere."""
        if phase != self._phase:
            self._phase = phase
            self._conductor.enter.remote(phase)
        self._on_status(phase, status)

    def _finish_uploads(self) -> list[str]:
        deadlines = self._config.deadlines
        return self._call("finish_uploads", deadline_s=2 * deadlines.upload_s + deadlines.checkpoint_s)

    def _close(self, *, failed: bool = False) -> dict[str, int]:
        """How every order ended. Never hides the error that ended the run: a failure to close is only logged."""
        try:
            return self._call("close", deadline_s=CLOSE_S, explain=False, failed=failed)
        except NegalignError as error:
            log.warning("%s", error)
            return {}
        finally:
            ray.kill(self._conductor)
            if self._trainer is not None:  # its workers have been killed, and their places are soon free
                self._trainer.wait(CLOSE_S)
            await_end(self._config.run.name)

    def _evaluate_train_evaluate(self) -> dict[str, Any] | None:
        before = None
        if self._evaluation:
            self._tell("evaluating before", None)
            before = self._evaluation.answer(self._generate, model=self._plan.model_path)
        deadlines = self._config.deadlines
        # A resumed run first gives its samplers and references what they held.
        self._call("start", deadline_s=deadlines.weights_s + deadlines.replace_s + deadlines.reference_s)
        assert self._trainer is not None
        self._watch(self._trainer)
        status = self._status()
        if status.is_stopping or not status.starts_anew:
            self._is_ending.set()
        if status.starts_anew:
            return None
        model_path = self._config.run_dir / "model"
        summary: dict[str, Any] = {}
        if self._evaluation and before:
            self._tell("evaluating after", status)
            evaluating_s = deadlines.answers_s + deadlines.score_s  # one while training
            self._call("wait_for_version", status.final_version, deadline_s=2 * evaluating_s + deadlines.weights_s)
            after = self._evaluation.answer(self._generate)
            summary = self._compare(self._evaluation, before, after)
        return summary | {"steps": status.step, "model": str(model_path)} | _guard_rows(status)

    def _compare(self, evaluation: Evaluation, before: Answered, after: Answered) -> dict[str, Any]:
        """A judge that gives up costs its own rows, not the summary of a trained model."""
        run_dir = self._config.run_dir
        summary = evaluation.compare(before, after, policy_path=run_dir / "model", save_as=run_dir / SIDES_FILE)
        try:
            summary["win_rates"] += evaluation.judge(before, after)
        except ScoreError as error:
            log.warning("%s", error)
            summary["judge_error"] = str(error)
        return summary

    def _watch(self, trainer: "Background") -> None:
        """Until the learners are done. The first Ctrl-C or SIGTERM asks them to stop after this step, a second Ctrl-C
        gives up; so does the watchdog when nothing moves."""
        interrupted = False
        watchdog, started_s = Watchdog(stall_s=self._config.deadlines.stall_s), time.monotonic()
        while trainer.is_running:
            try:
                trainer.wait(0.5)
                status = self._status()
                if status.is_stopping:
                    self._is_ending.set()
                self._tell("stopping" if self._is_ending.is_set() else "training", status)
                self._require_learners(status, waited_s=time.monotonic() - started_s)
                if self._growth is not None and not self._is_ending.is_set():
                    self._grow(self._growth.look(status.step), status)
                still_s = watchdog.look(status.moves)
                if still_s is not None:
                    setting = f"deadlines.stall_s={self._config.deadlines.stall_s:g} s"
                    raise self._stall(self._call("activities"), still_s=still_s, setting=setting)
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                self._is_ending.set()
                self._call("stop")
        status = self._status()
        self._tell("training", status)
        if trainer.error is not None:
            raise learner_failure(trainer.error, status.fatal) from trainer.error
        if status.fatal is not None:
            raise status.fatal

    def _grow(self, num: int | None, status: Status) -> None:
        """End this attempt after the step under way, to start anew with so many learners; None = go on."""
        if num is None:
            return
        self._growth = None
        learners = self._config.learners
        reason = f"learners: {learners.num} -> {num} (there has been room for {learners.grow_after_s:g} s)"
        event = Event(EventKind.SCALE, reason, "learner", step=status.step, weight_version=status.sampler_version)
        self._events.record(event)
        log.info("%s; the run starts anew after the step under way", reason)
        self._call("start_anew")

    def _require_learners(self, status: Status, *, waited_s: float) -> None:
        deadline_s = self._config.deadlines.start_s
        if not status.num_learners and waited_s > deadline_s:
            raise status.fatal or StallError(
                f"no learner has started within deadlines.start_s={deadline_s:g} s (free resources: "
                f"{free_resources()}); raise it, or lower learners.cpus or learners.gpus",
                role="learner",
            )

    def _stall(self, activities: Sequence[Activity] | None, *, still_s: float, setting: str) -> StallError:
        error = explain_stall(self._config.run_dir, activities, still_s=still_s, setting=setting)
        self._events.record(Event(EventKind.STALL, error.reason, role=error.role, rank=error.rank))
        return error

    def _generate(self, requests: Sequence[SampleRequest], spec: SamplingSpec) -> list[Generation]:
        return self._call("generate", requests, spec, deadline_s=self._config.deadlines.answers_s)

    def _status(self) -> Status:
        return self._call("status", deadline_s=self._config.deadlines.stall_s)

    def _call(
        self, method: str, *arguments: Any, deadline_s: float | None = None, explain: bool = True, **named: Any
    ) -> Any:
        """Where there is no answer in time, logs/stall.log says what every role was doing, unless not `explain`."""
        deadline_s = deadline_s or self._config.deadlines.sample_s + self._config.deadlines.start_s
        try:
            return ray.get(getattr(self._conductor, method).remote(*arguments, **named), timeout=deadline_s)
        except ray.exceptions.GetTimeoutError:
            late = f"no answer to `{method}` within {deadline_s:g} s"
            if not explain:
                raise StallError(late, role="conductor") from None
            raise self._stall(self._activities(), still_s=deadline_s, setting=late) from None
        except ray.exceptions.RayError as error:
            raise typed(error, role="conductor", rank=0) from error

    def _activities(self) -> Sequence[Activity] | None:
        """None where the conductor does not answer."""
        try:
            return self._call("activities", deadline_s=ANSWER_S, explain=False)
        except NegalignError:
            return None

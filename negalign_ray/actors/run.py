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
from negalign_ray.actors.host_memory import require_memory_here
from negalign_ray.actors.learner import make_trainer
from negalign_ray.actors.locate import namespace_of, require_idle
from negalign_ray.actors.plan import Plan, make_plan
from negalign_ray.actors.presence import announced, await_end, start_conductor
from negalign_ray.actors.processes import Background, free_resources, typed, wait_until_ready
from negalign_ray.actors.restarts import with_learners_that_fit, with_restarts
from negalign_ray.actors.results import BASE_FOLDER, create_run_dir, try_report, write_summary
from negalign_ray.actors.resume import Resumption, rewind
from negalign_ray.actors.stall import explain_stall
from negalign_ray.config import Config
from negalign_ray.engines.checkpoints import CheckpointStore
from negalign_ray.errors import NegalignError, ScoreError, StallError
from negalign_ray.evaluation.measure import Answered
from negalign_ray.evaluation.training_notes import training_notes
from negalign_ray.events import Event, EventKind, EventLog
from negalign_ray.loops.watchdog import Activity, Watchdog
from negalign_ray.metrics import read_metrics, time_so_far

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

    stop_asked = threading.Event()

    def attempt(plan: Plan, resume_from: Path | None) -> dict[str, Any]:
        plan = with_learners_that_fit(plan)
        with cluster(plan):
            return _Run(plan, on_status, base_cache, resume_from, stop_asked).execute()

    with shared_cluster(namespace_of(plan.config.run.name)), announced(plan.config.run_dir), sigterm_interrupts():
        summary = with_restarts(plan, attempt, resume_from=resume_from, is_unwanted=stop_asked.is_set)
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
        stop_asked: threading.Event,
    ) -> None:
        """`stop_asked` is set when somebody wants the run to end early, here or elsewhere, or a guard does."""
        self._plan, self._config, self._on_status = plan, plan.config, on_status
        self._resume_from, self._stop_asked = resume_from, stop_asked
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

    def execute(self) -> dict[str, Any]:
        self._on_status("starting", None)
        self._conductor = start_conductor(self._plan, self._resume_from)
        try:
            self._trainer = Background(make_trainer(self._plan, self._conductor, resume_from=self._resume_from).fit)
            deadlines = self._config.deadlines
            # Its own start, a place for all roles, their start, that of a scorer for evaluations: each has a deadline.
            ready_s = 3 * deadlines.start_s + deadlines.place_s
            wait_until_ready({"conductor-0": self._conductor.ready.remote()}, deadline_s=ready_s)
            summary = self._evaluate_train_evaluate()
            summary["failed_uploads"] = self._finish_uploads()
        except BaseException as error:
            ends = ", ".join(f"{number} {name}" for name, number in self._close().items())
            reason = f"{type(error).__name__}: {error}; orders: {ends or 'unknown'}"
            self._events.record(Event(EventKind.FAILED, reason))
            raise
        return summary | {"orders": self._close()}

    def _tell(self, phase: str, status: Status | None) -> None:
        """Whoever watches here, and through the conductor those who ask from elsewhere."""
        if phase != self._phase:
            self._phase = phase
            self._conductor.enter.remote(phase)
        self._on_status(phase, status)

    def _finish_uploads(self) -> list[str]:
        deadlines = self._config.deadlines
        return self._call("finish_uploads", deadline_s=2 * deadlines.upload_s + deadlines.checkpoint_s)

    def _close(self) -> dict[str, int]:
        """How every order ended. Never hides the error that ended the run: a failure to close is only logged."""
        try:
            return self._call("close", deadline_s=CLOSE_S)
        except NegalignError as error:
            log.warning("%s", error)
            return {}
        finally:
            ray.kill(self._conductor)
            if self._trainer is not None:  # its workers have been killed, and their places are soon free
                self._trainer.wait(CLOSE_S)
            await_end(self._config.run.name)

    def _evaluate_train_evaluate(self) -> dict[str, Any]:
        before = None
        if self._evaluation:
            self._tell("evaluating before", None)
            before = self._evaluation.answer(self._generate, model=self._plan.model_path)
        self._call("start")
        assert self._trainer is not None
        self._watch(self._trainer)
        status = self._status()
        model_path = self._config.run_dir / "model"
        summary: dict[str, Any] = {}
        if self._evaluation and before:
            self._tell("evaluating after", status)
            deadlines = self._config.deadlines
            evaluating_s = 2 * deadlines.sample_s + deadlines.start_s + deadlines.score_s  # one while training
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
                    self._stop_asked.set()
                self._tell("stopping" if self._stop_asked.is_set() else "training", status)
                self._require_learners(status, waited_s=time.monotonic() - started_s)
                still_s = watchdog.look(status.moves)
                if still_s is not None:
                    raise self._stall(self._call("activities"), still_s=still_s)
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                self._stop_asked.set()
                self._call("stop")
        status = self._status()
        self._tell("training", status)
        if trainer.error is not None:
            raise learner_failure(trainer.error, status.fatal) from trainer.error
        if status.fatal is not None:
            raise status.fatal

    def _require_learners(self, status: Status, *, waited_s: float) -> None:
        deadline_s = self._config.deadlines.start_s
        if not status.num_learners and waited_s > deadline_s:
            raise status.fatal or StallError(
                f"no learner has started within deadlines.start_s={deadline_s:g} s (free resources: "
                f"{free_resources()}); raise it, or lower learners.cpus or learners.gpus",
                role="learner",
            )

    def _stall(self, activities: Sequence[Activity] | None, *, still_s: float) -> StallError:
        setting = f"deadlines.stall_s={self._config.deadlines.stall_s:g} s"
        error = explain_stall(self._config.run_dir, activities, still_s=still_s, setting=setting)
        self._events.record(Event(EventKind.STALL, error.reason, role=error.role, rank=error.rank))
        return error

    def _generate(self, requests, spec):
        return self._call("generate", requests, spec)

    def _status(self) -> Status:
        stall_s = self._config.deadlines.stall_s
        try:
            return self._call("status", deadline_s=stall_s)
        except StallError as error:
            raise self._stall(None, still_s=stall_s) from error

    def _call(self, method: str, *arguments: Any, deadline_s: float | None = None) -> Any:
        deadline_s = deadline_s or self._config.deadlines.sample_s + self._config.deadlines.start_s
        try:
            return ray.get(getattr(self._conductor, method).remote(*arguments), timeout=deadline_s)
        except ray.exceptions.GetTimeoutError:
            raise StallError(f"no answer to `{method}` within {deadline_s:g} s", role="conductor") from None
        except ray.exceptions.RayError as error:
            raise typed(error, role="conductor", rank=0) from error

"""A whole run from the driver's side.

plan --> cluster --> conductor (samplers, scorers, references) --> learners --> model/
                          |  before                        after  |
                          +---------- evaluation ------------------+--> summary.json
"""

import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from rich.console import RenderableType

from negalign_ray.actors.cluster import cluster
from negalign_ray.actors.conductor import Conductor, Status
from negalign_ray.actors.dry_run import describe
from negalign_ray.actors.evaluator import SIDES_FILE, Evaluation
from negalign_ray.actors.learner import make_trainer
from negalign_ray.actors.plan import Plan, make_plan
from negalign_ray.actors.processes import Background, start_actor, typed, wait_until_ready
from negalign_ray.actors.reservations import give_back_leftovers, prefix_of
from negalign_ray.actors.resume import Resumption, rewind
from negalign_ray.config import Config
from negalign_ray.engines.checkpoints import FOLDER as CHECKPOINTS
from negalign_ray.engines.checkpoints import MANIFEST, CheckpointStore
from negalign_ray.errors import ConfigError, NegalignError, RoleError
from negalign_ray.evaluation.table import summary_markdown
from negalign_ray.events import FILE_NAME as EVENTS
from negalign_ray.settings import dump_config
from negalign_ray.trackers import TRACKERS

log = logging.getLogger(__name__)

OnStatus = Callable[[str, Status | None], None]  # phase, what the conductor says


def ignore_status(phase: str, status: Status | None) -> None:
    """For callers that watch nothing."""


def train(config: Config, *, on_status: OnStatus = ignore_status, base_cache: Path | None = None) -> dict[str, Any]:
    """Align a model and return the summary that also stands in <run>/summary.json.

    Everything that can be checked is checked before Ray starts. Ctrl-C ends the run after the step under way: the model
    and the figures of what was learned so far are kept. Runs from the same model may share a folder `base_cache`, so
    that it is evaluated once.
    """
    on_status("checking", None)
    plan = make_plan(config)
    create_run_dir(plan.config)
    return _carry_out(plan, on_status, base_cache=base_cache)


def resume(resumption: Resumption, *, on_status: OnStatus = ignore_status) -> dict[str, Any]:
    """Go on from a checkpoint of a run that was stopped or cut short, which `find_checkpoint` has found."""
    on_status("checking", None)
    plan = make_plan(resumption.config)
    rewind(resumption)
    return _carry_out(plan, on_status, resume_from=resumption.checkpoint.path)


def _carry_out(
    plan: Plan, on_status: OnStatus, *, base_cache: Path | None = None, resume_from: Path | None = None
) -> dict[str, Any]:
    started_s = time.perf_counter()
    with cluster(plan):
        summary = _Run(plan, on_status, base_cache, resume_from).execute()
    summary["wall_s"] = time.perf_counter() - started_s
    write_summary(plan.config.run_dir, summary)
    is_finished = summary["steps"] >= plan.config.learners.steps and summary["rolled_back_to"] is None
    if is_finished and not plan.config.checkpoints.keep_finished:
        CheckpointStore(plan.config.run_dir, plan.config.checkpoints).clear()
    return summary


def dry_run(config: Config) -> RenderableType:
    """Everything `train` checks before it starts anything, and what it would start."""
    return describe(make_plan(config))


def create_run_dir(config: Config) -> None:
    run_dir = config.run_dir
    if (run_dir / "metrics.jsonl").exists():
        if not config.run.overwrite:
            raise ConfigError(
                f"run.name={config.run.name}: {run_dir} already holds a run; choose another name with "
                "--set run.name=..., or delete it with --set run.overwrite=true."
            )
        _delete_results(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(dump_config(config))


BASE_FOLDER = "base"  # what the initial model said and thought: a resumed run need not ask it again
RESULTS = (
    "metrics.jsonl", EVENTS, "summary.json", "summary.md", SIDES_FILE, "samples", "logs", "model", "ray_train",
    "tensorboard", CHECKPOINTS, MANIFEST, BASE_FOLDER,
    *TRACKERS,
)  # fmt: skip


def _delete_results(run_dir: Path) -> None:
    """Only what a run writes; anything else in the folder stays."""
    for name in RESULTS:
        path = run_dir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    """summary.json, and summary.md for people where something was evaluated."""
    _replace(run_dir / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    if "figures" in summary:
        _replace(run_dir / "summary.md", summary_markdown(summary))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


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
        self, plan: Plan, on_status: OnStatus, base_cache: Path | None, resume_from: Path | None = None
    ) -> None:
        self._plan, self._config, self._on_status = plan, plan.config, on_status
        self._resume_from = resume_from
        base_cache = base_cache or plan.config.run_dir / BASE_FOLDER
        self._evaluation = None
        if plan.config.evaluation.enabled:
            self._evaluation = Evaluation(plan, base_path=plan.model_path, cache_dir=base_cache)
        self._conductor: Any = None

    def execute(self) -> dict[str, Any]:
        self._on_status("starting", None)
        options = {"name": f"{self._config.run.name}/conductor"}
        self._conductor = start_actor(Conductor, options, self._plan, self._resume_from)
        try:
            wait_until_ready({"conductor-0": self._conductor.ready.remote()}, deadline_s=self._config.deadlines.start_s)
            summary = self._evaluate_train_evaluate()
            summary["failed_uploads"] = self._finish_uploads()
        finally:
            outcomes = self._close()
        return summary | {"orders": outcomes}

    def _finish_uploads(self) -> list[str]:
        deadlines = self._config.deadlines
        return self._call("finish_uploads", deadline_s=2 * deadlines.upload_s + deadlines.checkpoint_s)

    def _close(self) -> dict[str, int]:
        """How every order ended. Never hides the error that ended the run: a failure to close is only logged."""
        try:
            return self._call("close")
        except NegalignError as error:
            log.warning("%s", error)
            return {}
        finally:
            ray.kill(self._conductor)
            give_back_leftovers(prefix_of(self._config.run.name))  # of a conductor that could not do it itself

    def _evaluate_train_evaluate(self) -> dict[str, Any]:
        fit = make_trainer(self._plan, self._conductor, resume_from=self._resume_from).fit
        trainer = Background(fit)  # starts up while `before` is measured
        before = None
        if self._evaluation:
            self._on_status("evaluating before", None)
            before = self._evaluation.answer_base(self._generate)
        self._call("start")
        self._watch(trainer)
        status = self._status()
        model_path = self._config.run_dir / "model"
        summary: dict[str, Any] = {}
        if self._evaluation and before:
            self._on_status("evaluating after", status)
            self._call("wait_for_version", status.final_version)
            after = self._evaluation.answer(self._generate)
            summary = self._evaluation.compare(
                before, after, policy_path=model_path, save_as=self._config.run_dir / SIDES_FILE
            )
        return summary | {"steps": status.step, "model": str(model_path)} | _guard_rows(status)

    def _watch(self, trainer: "Background") -> None:
        """Until the learners are done. The first Ctrl-C asks them to stop after this step, the second gives up."""
        stopping = False
        while trainer.is_running:
            try:
                trainer.wait(0.5)
                self._on_status("stopping" if stopping else "training", self._status())
            except KeyboardInterrupt:
                if stopping:
                    raise
                stopping = True
                self._call("stop")
        status = self._status()
        self._on_status("training", status)
        if status.fatal is not None:
            raise status.fatal
        if trainer.error is not None:
            raise RoleError(f"{trainer.error}; see logs/learner-*.log", role="learner") from trainer.error

    def _generate(self, requests, spec):
        return self._call("generate", requests, spec)

    def _status(self) -> Status:
        return self._call("status")

    def _call(self, method: str, *arguments: Any, deadline_s: float | None = None) -> Any:
        deadline_s = deadline_s or self._config.deadlines.sample_s + self._config.deadlines.start_s
        try:
            return ray.get(getattr(self._conductor, method).remote(*arguments), timeout=deadline_s)
        except ray.exceptions.RayError as error:
            raise typed(error, role="conductor", rank=0) from error

"""`negalign-ray evaluate`: the table of a run for any model, in a folder of its own (evaluation_folder.py).

check --> answers of the model, and of the base --> log-probs, scores --> win rates --> summary.* --> lm_eval --> again
          `------------- every part is kept as it comes; a second call goes on where the first one was cut ------'
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from negalign_ray.actors.cluster import cluster
from negalign_ray.actors.evaluation_folder import KEPT, PENDING, evaluation_folder, finished_summary
from negalign_ray.actors.evaluator import SIDES_FILE, Answered, Evaluation
from negalign_ray.actors.plan import Plan, make_plan
from negalign_ray.actors.processes import typed, wait_until_ready
from negalign_ray.actors.results import write_summary
from negalign_ray.actors.run import OnStatus, ignore_status
from negalign_ray.actors.starting import make_sampler
from negalign_ray.config import Config
from negalign_ray.errors import ConfigError, StallError
from negalign_ray.evaluation.lm_eval import LmEval
from negalign_ray.evaluation.model_cache import Generate
from negalign_ray.records import Generation, SampleRequest, SamplingSpec

OnSummary = Callable[[dict[str, Any]], None]


def ignore_summary(summary: dict[str, Any]) -> None:
    pass


def evaluate(
    config: Config,
    *,
    out: Path | None = None,
    lm_eval: LmEval | None = None,
    on_status: OnStatus = ignore_status,
    on_summary: OnSummary = ignore_summary,
) -> dict[str, Any]:
    """The table of `train` for the model of `config.model.path`, which also stands in summary["folder"]/summary.json.

    With another model as `references.rpos`, that one is "before" and this one "after"; else the one side is described.
    Everything that can be checked is checked before a folder is made and Ray starts. A finished evaluation in `out` is
    read, not made again. `on_summary` gets the summary once it is written, before hours of lm_eval join it.
    """
    on_status("checking", None)
    if lm_eval is not None:
        lm_eval.require_installed()
    enabled = config.evaluation.model_copy(update={"enabled": True})
    plan = make_plan(config.model_copy(update={"evaluation": enabled}))
    _require_two_sides(plan)
    if lm_eval is not None:
        lm_eval.require_tasks()
    with evaluation_folder(plan.config, out=out) as settings:
        plan, folder = replace(plan, config=settings), settings.run_dir
        summary = finished_summary(folder)
        if summary is None:
            with cluster(plan, train=False):
                summary = _evaluate(plan, on_status)
            summary |= {"model": str(plan.model_path), "folder": str(folder)}
            if lm_eval is not None:
                (folder / PENDING).touch()  # first: with a summary the folder would be taken for a finished one
            write_summary(folder, summary)
        on_summary(summary)
        if lm_eval is not None:
            on_status("lm_eval", None)
            summary["lm_eval"] = _benchmarks(plan, lm_eval)
            write_summary(folder, summary)
        (folder / PENDING).unlink(missing_ok=True)
    return summary


def _require_two_sides(plan: Plan) -> None:
    """A judge of pairs has nothing to compare where one model is described."""
    if plan.config.evaluation.judge is not None and plan.rpos_path == plan.model_path:
        raise ConfigError(
            f"evaluation.judge compares the answers of two models, and only {plan.config.model.path} is named; name "
            "the model before it with --base (references.rpos), or take the judge out with --set evaluation.judge=null."
        )


def _evaluate(plan: Plan, on_status: OnStatus) -> dict[str, Any]:
    kept = plan.config.run_dir / KEPT
    evaluation = Evaluation(plan, base_path=plan.rpos_path, base_cache=kept, own_cache=kept)
    on_status("answering", None)
    answered = _answer(plan, evaluation)
    if plan.rpos_path == plan.model_path:
        on_status("measuring", None)
        return evaluation.describe(answered)
    on_status("answering, reference", None)
    before = _answer(replace(plan, model_path=plan.rpos_path), evaluation)
    on_status("measuring", None)
    sides = plan.config.run_dir / SIDES_FILE
    summary = evaluation.compare(before, answered, policy_path=plan.model_path, save_as=sides)
    if plan.config.evaluation.judge is not None:
        on_status("judging", None)
        summary["win_rates"] += evaluation.judge(before, answered)
    return summary


def _answer(plan: Plan, evaluation: Evaluation) -> Answered:
    with _samplers(plan) as generate:
        return evaluation.answer(generate, model=plan.model_path)


@contextmanager
def _samplers(plan: Plan) -> Iterator[Generate]:
    """`samplers.num` of them with the plan's model, started at the first call: kept answers need none."""
    deadlines = plan.config.deadlines
    actors: list[Any] = []

    def generate(requests: Sequence[SampleRequest], spec: SamplingSpec) -> list[Generation]:
        if not actors:
            actors.extend(make_sampler(plan, rank) for rank in range(plan.config.samplers.num))
            starting = {f"sampler-{rank}": actor.ready.remote() for rank, actor in enumerate(actors)}
            wait_until_ready(starting, deadline_s=deadlines.start_s)
        size = -(-len(requests) // len(actors))
        parts = [requests[start : start + size] for start in range(0, len(requests), size)]
        calls = [actor.generate.remote(part, spec) for actor, part in zip(actors, parts, strict=False)]
        answers = [_within(call, rank=rank, deadline_s=deadlines.sample_s) for rank, call in enumerate(calls)]
        return [generation for part in answers for generation in part]

    try:
        yield generate
    finally:
        for actor in actors:
            ray.kill(actor)


def _within(call: Any, *, rank: int, deadline_s: float) -> list[Generation]:
    try:
        return ray.get(call, timeout=deadline_s)
    except ray.exceptions.GetTimeoutError:
        reason = f"no answers within deadlines.sample_s={deadline_s:g} s; raise it, or samplers.num"
        raise StallError(reason, role="sampler", rank=rank) from None
    except ray.exceptions.RayError as error:
        raise typed(error, role="sampler", rank=rank) from error


def _benchmarks(plan: Plan, lm_eval: LmEval) -> dict[str, Any]:
    """{"before": {task: {metric: ...}}, "after": ...}, or "model" alone."""
    sides = {"model": plan.model_path}
    if plan.rpos_path != plan.model_path:
        sides = {"before": plan.rpos_path, "after": plan.model_path}
    folder, gpus = plan.config.run_dir / "lm_eval", plan.config.references.gpus
    device = "cuda" if gpus else "cpu"
    deadline_s = plan.config.deadlines.lm_eval_s
    return {
        side: lm_eval.run(path, out=folder / side, device=device, dtype=plan.sampler_dtype, deadline_s=deadline_s)
        for side, path in sides.items()
    }

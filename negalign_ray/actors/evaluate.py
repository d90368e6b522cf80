"""`negalign-ray evaluate`: the table of a run for any model, in a folder of its own.

<run>/evaluations/<model>/   config.yaml, summary.json, summary.md, samples/evaluation.jsonl, logs/ and, with a
                             "before" side, evaluation.json; the next evaluation of this model: <model>-2
"""

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from negalign_ray.actors.cluster import cluster
from negalign_ray.actors.evaluator import SIDES_FILE, Answered, Evaluation
from negalign_ray.actors.plan import Plan, make_plan
from negalign_ray.actors.processes import typed, wait_until_ready
from negalign_ray.actors.run import OnStatus, ignore_status, write_summary
from negalign_ray.actors.starting import make_sampler
from negalign_ray.config import Config
from negalign_ray.settings import dump_config

FOLDER = "evaluations"  # in the run directory: an evaluation never writes among the files of the run itself


def evaluate(config: Config, *, on_status: OnStatus = ignore_status) -> dict[str, Any]:
    """The table of `train` for the model of `config.model.path`, which also stands in summary["folder"]/summary.json.

    With another model as `references.rpos`, that one is "before" and this one "after"; else the one side is described.
    Everything that can be checked is checked before a folder is made and Ray starts.
    """
    on_status("checking", None)
    enabled = config.evaluation.model_copy(update={"enabled": True})
    plan = make_plan(config.model_copy(update={"evaluation": enabled}))
    plan = replace(plan, config=in_own_folder(plan.config))
    folder = plan.config.run_dir
    (folder / "config.yaml").write_text(dump_config(plan.config))
    with cluster(plan, train=False):
        summary = _evaluate(plan, on_status)
    summary |= {"model": str(plan.model_path), "folder": str(folder)}
    write_summary(folder, summary)
    return summary


def in_own_folder(config: Config) -> Config:
    """`config` with a new folder below its run directory as its run directory. The folder is made."""
    parent, name = config.run_dir / FOLDER, _short_name(config.model.path)
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        break
    return config.model_copy(update={"run": config.run.model_copy(update={"dir": parent, "name": folder.name})})


def _short_name(model: str) -> str:
    """ "runs/d2o/model" -> "d2o", "org/some model" -> "some-model" """
    parts = [part for part in Path(model).parts if part != "model"]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", parts[-1] if parts else "").strip("-._") or "model"


def _evaluate(plan: Plan, on_status: OnStatus) -> dict[str, Any]:
    evaluation = Evaluation(plan, base_path=plan.rpos_path)
    on_status("answering", None)
    answered = _answer(plan, evaluation)
    if plan.rpos_path == plan.model_path:
        on_status("measuring", None)
        return evaluation.describe(answered)
    on_status("answering, reference", None)
    before = _answer(replace(plan, model_path=plan.rpos_path), evaluation)
    on_status("measuring", None)
    sides = plan.config.run_dir / SIDES_FILE
    return evaluation.compare(before, answered, policy_path=plan.model_path, save_as=sides)


def _answer(plan: Plan, evaluation: Evaluation) -> Answered:
    """The answers of the plan's model, from a sampler started for them."""
    deadlines = plan.config.deadlines
    sampler = make_sampler(plan, 0)
    wait_until_ready({"sampler-0": sampler.ready.remote()}, deadline_s=deadlines.start_s)
    try:
        return evaluation.answer(
            lambda requests, spec: ray.get(sampler.generate.remote(requests, spec), timeout=deadlines.sample_s)
        )
    except ray.exceptions.RayError as error:
        raise typed(error, role="sampler", rank=0) from error
    finally:
        ray.kill(sampler)

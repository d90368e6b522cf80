"""The learner role: a Ray Train worker group; each rank runs the training loop on its shard of the policy."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.exceptions import GetTimeoutError, RayError
from ray.train.torch import TorchConfig, TorchTrainer
from torch import Tensor

from negalign_ray.actors.plan import Plan
from negalign_ray.actors.processes import open_log, thread_environment, typed
from negalign_ray.errors import NegalignError, RoleError, StallError
from negalign_ray.loops.buffer import Handle
from negalign_ray.loops.roles import Batch, StepReport
from negalign_ray.loops.schedule import SamplingSchedule
from negalign_ray.loops.training import TrainingLoop
from negalign_ray.records import Group

log = logging.getLogger(__name__)


def make_trainer(plan: Plan, conductor: Any) -> TorchTrainer:
    learners = plan.config.learners
    uses_gpu = learners.gpus > 0
    resources = {"CPU": learners.cpus} | ({"GPU": learners.gpus} if uses_gpu else {})
    environment = thread_environment(str(learners.threads)) | ({} if uses_gpu else {"DS_ACCELERATOR": "cpu"})
    return TorchTrainer(
        run_worker,
        train_loop_config={"plan": plan, "conductor": conductor},
        torch_config=TorchConfig(backend="nccl" if uses_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=learners.num,
            use_gpu=uses_gpu,
            resources_per_worker=resources,
            label_selector=dict(learners.labels) or None,  # type: ignore[call-arg]  # as below
        ),
        run_config=ray.train.RunConfig(
            name="ray_train",
            storage_path=str(plan.config.run_dir.resolve()),
            worker_runtime_env={"env_vars": environment},  # type: ignore[call-arg]  # mypy sees the one of Train V1
        ),
    )


def run_worker(settings: dict[str, Any]) -> None:
    """One rank, from start to the exported model."""
    plan, conductor = settings["plan"], settings["conductor"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    open_log(plan.config.run_dir, f"learner-{rank}")
    torch.set_num_threads(plan.config.learners.threads)
    try:
        _train_and_export(plan, conductor, rank=rank, world_size=world_size)
    except Exception as error:
        failure = error if isinstance(error, NegalignError) else RoleError(repr(error), role="learner", rank=rank)
        log.exception("learner rank %d failed", rank)
        ray.get(conductor.learner_failed.remote(failure), timeout=plan.config.deadlines.start_s)
        raise


def _train_and_export(plan: Plan, conductor: Any, *, rank: int, world_size: int) -> None:
    from negalign_ray.engines.deepspeed_engine import DeepSpeedEngine  # heavy, and the driver imports this file

    config = plan.config
    engine = DeepSpeedEngine(
        plan.model_path, config=config.learners, dtype=getattr(torch, plan.learner_dtype), seed=config.run.seed
    )
    loop = TrainingLoop(
        learner=engine,
        source=ConductorSource(plan, conductor, rank=rank),
        method=plan.method,
        method_config=config.method,
        config=config.learners,
        schedule=SamplingSchedule.from_config(config.sampling),
        rank=rank,
        world_size=world_size,
        save_samples=SampleLog(config.run_dir, rank=rank).write,
        reward=plan.reward,
        weight_change_sq=engine.weight_change_sq,
        followed=_followed(plan),
        follow_every=config.follow.every,
    )
    steps_done = loop.run()
    engine.export(config.run_dir / "model", tokenizer_folder=plan.model_path)
    if steps_done < config.learners.steps:  # stopped early: the samplers still need what was learned
        weights = engine.gather_weights()
        if rank == 0:
            loop.source.publish(steps_done, weights)


def _followed(plan: Plan) -> dict[str, tuple[Group, ...]]:
    from negalign_ray.evaluation.probes import followed_groups

    config = plan.config
    return followed_groups(
        (*plan.data.heldout, *plan.data.heldout_rest),
        plan.benign,
        num=config.follow.num_rows,
        asked=plan.probes.benign_prompts if plan.probes else (),
        seed=config.run.seed,
    )


class ConductorSource:
    """The conductor as this rank sees it: blocking calls, each with a deadline."""

    def __init__(self, plan: Plan, conductor: Any, *, rank: int) -> None:
        self._conductor, self._rank, self._deadlines = conductor, rank, plan.config.deadlines
        self._sampler_dtype = getattr(torch, plan.sampler_dtype)
        self._publishing: Any = None

    def pull(self, step: int) -> Batch | None:
        self._raise_failed_publish()
        # The conductor has the deadline; the margin covers its answer.
        return self._get(self._conductor.pull.remote(step), self._deadlines.pull_s + 60, "pull_s")

    def fetch(self, handles: Sequence[Handle]) -> list[Group]:
        return self._get([handle.ref for handle in handles], self._deadlines.pull_s, "pull_s")

    def publish(self, version: int, tensors: list[tuple[str, Tensor]]) -> None:
        from negalign_ray.engines.weights import WeightBundle

        bundle = WeightBundle.from_tensors(tensors, version=version, dtype=self._sampler_dtype)
        self._publishing = self._conductor.publish.remote(version, [ray.put(bundle)])

    def report(self, report: StepReport) -> None:
        self._get(self._conductor.report.remote(report), self._deadlines.pull_s, "pull_s")

    def _raise_failed_publish(self) -> None:
        if self._publishing is not None:
            done, _ = ray.wait([self._publishing], timeout=0)
            if done:
                self._get(self._publishing, self._deadlines.weights_s, "weights_s")
                self._publishing = None

    def _get(self, reference: Any, deadline_s: float, setting: str) -> Any:
        try:
            return ray.get(reference, timeout=deadline_s)
        except GetTimeoutError:
            reason = (
                f"the conductor did not answer within deadlines.{setting}={deadline_s:g} s; see logs/conductor-0.log"
            )
            raise StallError(reason, role="learner", rank=self._rank) from None
        except RayError as error:
            raise typed(error, role="conductor", rank=0) from error


class SampleLog:
    """Every group this rank trained on, as one JSON line: <run>/samples/rank-<r>.jsonl."""

    def __init__(self, run_dir: Path, *, rank: int) -> None:
        folder = run_dir / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / f"rank-{rank}.jsonl", "a", encoding="utf-8")  # noqa: SIM115 (lives as long as the run)

    def write(self, step: int, groups: Sequence[Group]) -> None:
        for group in groups:
            self._file.write(json.dumps(sample_row(step, group), ensure_ascii=False) + os.linesep)
        self._file.flush()


def sample_row(step: int, group: Group) -> dict[str, Any]:
    """Readable: texts, roles, rewards, versions; token ids only as counts."""
    responses = []
    for response in group.responses:
        row = asdict(response)
        for key in ("token_ids", "context_ids", "sampler_logprobs"):
            row.pop(key)
        responses.append(row | {"num_tokens": len(response.token_ids)})
    prompt = group.prompt
    return {
        "step": step + 1,
        "order_id": group.order_id,
        "prompt_id": prompt.prompt_id,
        "behaviour": prompt.behaviour,
        "prompt": prompt.text,
        "responses": responses,
    }

"""The learner role: a Ray Train worker group; each rank runs the training loop on its shard of the policy."""

import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ray
import ray.train
import torch
from ray.exceptions import GetTimeoutError, RayError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.execution.callback import WorkerGroupCallback  # Ray has no public place for it
from safetensors import SafetensorError
from torch import Tensor

from negalign_ray.actors.plan import Plan
from negalign_ray.actors.processes import open_log, reason_of, thread_environment, typed
from negalign_ray.actors.saving import LEARNER
from negalign_ray.actors.status import Ending
from negalign_ray.config import Config
from negalign_ray.engines.checkpoints import CheckpointStore
from negalign_ray.errors import CheckpointError, NegalignError, RoleError, StallError
from negalign_ray.loops.buffer import Handle
from negalign_ray.loops.roles import Batch, StepReport
from negalign_ray.loops.schedule import SamplingSchedule
from negalign_ray.loops.training import TrainingLoop
from negalign_ray.records import Group

if TYPE_CHECKING:
    from negalign_ray.actors.courier import Courier
    from negalign_ray.engines.deepspeed_engine import DeepSpeedEngine

log = logging.getLogger(__name__)


def make_trainer(plan: Plan, conductor: Any, *, resume_from: Path | None = None) -> TorchTrainer:
    learners = plan.config.learners
    uses_gpu = learners.gpus > 0
    resources = {"CPU": learners.cpus} | ({"GPU": learners.gpus} if uses_gpu else {})
    deadlines = plan.config.deadlines
    room = RoomForLearners(conductor, deadline_s=deadlines.place_s + deadlines.start_s)
    environment = thread_environment(str(learners.threads)) | ({} if uses_gpu else {"DS_ACCELERATOR": "cpu"})
    return TorchTrainer(
        run_worker,
        train_loop_config={"plan": plan, "conductor": conductor, "resume_from": resume_from},
        torch_config=TorchConfig(backend="nccl" if uses_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=learners.num,
            use_gpu=uses_gpu,
            resources_per_worker=resources,
            label_selector=dict(learners.labels) or None,  # type: ignore[call-arg]  # as below
        ),
        run_config=ray.train.RunConfig(
            name="ray_train",
            callbacks=[room],  # type: ignore[list-item]  # RunConfig wants UserCallbacks, Train takes both
            storage_path=str(plan.config.run_dir.resolve()),
            worker_runtime_env={"env_vars": environment},  # type: ignore[call-arg]  # mypy sees the one of Train V1
        ),
    )


class RoomForLearners(WorkerGroupCallback):
    """The conductor holds a placement group for the learners, so that no other run takes their room while roles start;
    Ray Train makes a group of its own. This lets go of the one right before the other is asked for, and not before all
    roles have a place."""

    def __init__(self, conductor: Any, *, deadline_s: float) -> None:
        self._conductor, self._deadline_s = conductor, deadline_s

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        ray.get(self._conductor.make_room_for.remote("learner"), timeout=self._deadline_s)


def run_worker(settings: dict[str, Any]) -> None:
    """One rank, from start to the exported model."""
    plan, conductor = settings["plan"], settings["conductor"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    open_log(plan.config.run_dir, f"learner-{rank}")
    torch.set_num_threads(plan.config.learners.threads)
    try:
        _train_and_export(plan, conductor, rank=rank, world_size=world_size, resume_from=settings["resume_from"])
    except Exception as error:
        failure = error if isinstance(error, NegalignError) else RoleError(reason_of(error), role="learner", rank=rank)
        log.exception("learner rank %d failed", rank)
        with suppress(RayError):  # then the conductor is what failed, and the driver sees it
            ray.get(conductor.learner_failed.remote(failure, rank), timeout=plan.config.deadlines.start_s)
        raise


def _train_and_export(plan: Plan, conductor: Any, *, rank: int, world_size: int, resume_from: Path | None) -> None:
    from negalign_ray.engines.deepspeed_engine import DeepSpeedEngine  # heavy, and the driver imports this file

    config = plan.config
    source = ConductorSource(plan, conductor, rank=rank)
    source.join()
    engine = DeepSpeedEngine(
        plan.model_path,
        config=config.learners,
        dtype=getattr(torch, plan.learner_dtype),
        seed=config.run.seed,
        shares_device=config.samplers.sleep,
    )
    schedule = SamplingSchedule.from_config(config.sampling)
    if plan.num_samples == 0:
        schedule = replace(schedule, also_every=config.evaluation.every)
    if resume_from is not None:
        engine.load(resume_from / LEARNER)
        if schedule.due(engine.num_steps_done) == engine.num_steps_done:
            _publish(engine, source, engine.num_steps_done, rank=rank)
    checkpoints = LearnerCheckpoints(engine, config, rank=rank)
    loop = TrainingLoop(
        learner=engine,
        source=source,
        method=plan.method,
        method_config=config.method,
        config=config.learners,
        schedule=schedule,
        rank=rank,
        world_size=world_size,
        save_samples=SampleLog(config.run_dir, rank=rank).write,
        reward=plan.reward,
        weight_change_sq=engine.weight_change_sq,
        followed=_followed(plan),
        follow_every=config.follow.every,
        keep=checkpoints.keep,
    )
    first_step = engine.num_steps_done
    steps_done = loop.run(first_step=first_step)
    ending = source.ending(steps_done)
    if ending.back_to is not None:
        engine.load(ending.back_to / LEARNER)
        _publish(engine, source, steps_done + 1, rank=rank)  # a version never goes back
    elif steps_done < config.learners.steps:  # stopped early
        if steps_done > first_step and not checkpoints.is_due(steps_done):  # else it has one
            checkpoints.write(steps_done)
            if rank == 0:
                source.seal()
        if not ending.starts_anew:
            _publish(engine, source, steps_done, rank=rank)  # the samplers still need what was learned
    if not ending.starts_anew:
        model = config.run_dir / "model"
        engine.export(model, plan.model_path, chat_template=plan.chat_template, end_ids=plan.stop_ids)
    source.finish()


def _publish(engine: "DeepSpeedEngine", source: "ConductorSource", version: int, *, rank: int) -> None:
    weights = engine.gather_weights()
    if rank == 0:
        source.publish(version, weights)


class LearnerCheckpoints:
    """The learners' part of the checkpoints; the conductor adds its own and seals them."""

    def __init__(self, engine: "DeepSpeedEngine", config: Config, *, rank: int) -> None:
        self._engine, self._config, self._rank = engine, config, rank
        self._store = CheckpointStore(config.run_dir, config.checkpoints)

    def keep(self, version: int) -> bool:
        """Write one if it is due; collective."""
        if not self.is_due(version):
            return False
        self.write(version)
        return True

    def is_due(self, version: int) -> bool:
        return self._config.checkpoints.due(version, num_steps=self._config.learners.steps)

    def write(self, version: int) -> None:
        """Collective. CheckpointError when rank 0 cannot write."""
        folder = self._store.partial(version) / LEARNER
        try:
            if self._rank == 0:
                self._store.begin(version)
                folder.mkdir()
            self._engine.save(folder)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"the learners' part of the checkpoint of step {version} could not be written: {error}; free some "
                "space, or set checkpoints.every=0 and resume from the one before."
            ) from error


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
        self._courier = self._make_courier(plan.config.samplers.weight_transfer) if rank == 0 else None

    def join(self) -> None:
        me = ray.get_runtime_context().current_actor
        self._get(self._conductor.join.remote(self._rank, me), self._deadlines.start_s, "start_s")

    def pull(self, step: int) -> Batch | None:
        self._raise_failed_publish()
        # The conductor has the deadline; the margin covers its answer.
        batch = self._get(self._conductor.pull.remote(step, self._rank), self._deadlines.pull_s + 60, "pull_s")
        if self._courier is not None:
            self._raise_failed_publish()  # and give back what the update took of the device, before it is needed
        return batch

    def fetch(self, handles: Sequence[Handle]) -> list[Group]:
        refs = [handle.ref for handle in handles]
        return self._get(refs, self._deadlines.pull_s, "pull_s", role="learner", rank=self._rank)

    def publish(self, version: int, tensors: list[tuple[str, Tensor]]) -> None:
        from negalign_ray.engines.weights import WeightBundle

        bundle = WeightBundle.from_tensors(tensors, version=version, dtype=self._sampler_dtype)
        if self._courier is None:
            self._publishing = self._conductor.publish.remote(version, [ray.put(bundle)])
            return
        self._finish_publish()
        self._publishing = self._conductor.publish.remote(version, [ray.put(bundle)], self._courier.offer(bundle))
        self._courier.carry(bundle)

    def finish(self) -> None:
        """Before this process ends, and its objects with it: others still need the weights of rank 0."""
        self._finish_publish()
        if self._rank == 0:
            self._get(self._conductor.outlive_learners.remote(), self._deadlines.stall_s, "stall_s")

    def report(self, report: StepReport) -> None:
        self._get(self._conductor.report.remote(report), self._deadlines.pull_s, "pull_s")

    def seal(self) -> None:
        """Rank 0, when all ranks have written their part of a stopped run's checkpoint."""
        self._get(self._conductor.seal.remote(), self._deadlines.checkpoint_s + 60, "checkpoint_s")

    def ending(self, num_steps_done: int) -> Ending:
        """How this rank is to end, the same for all of them."""
        return self._get(
            self._conductor.ending.remote(num_steps_done), self._deadlines.checkpoint_s + 60, "checkpoint_s"
        )

    def _raise_failed_publish(self) -> None:
        if self._publishing is not None:
            done, _ = ray.wait([self._publishing], timeout=0)
            if done:
                self._finish_publish()

    def _finish_publish(self) -> None:
        """Waits for the update under way, if there is one. The conductor has the deadlines of what that may take."""
        if self._publishing is None:
            return
        self._get(self._publishing, self._deadlines.stall_s, "stall_s")
        self._publishing = None
        if self._courier is not None:
            self._courier.settle()

    def _make_courier(self, way: Literal["object_store", "nccl", "ipc"]) -> "Courier | None":
        """None where the object store takes all weights."""
        if way == "object_store":
            return None
        from negalign_ray.actors.courier import Courier

        def ask_meeting(version: int) -> Any:  # samplers finish what they are at before they meet
            return self._get(self._conductor.meeting.remote(version), self._deadlines.stall_s, "stall_s")

        address, device = ray.util.get_node_ip_address(), torch.cuda.current_device()
        return Courier(way, address=address, ask_meeting=ask_meeting, device=device)

    def _get(self, reference: Any, deadline_s: float, setting: str, *, role: str = "conductor", rank: int = 0) -> Any:
        """`role` and `rank`: of whom a failure is."""
        try:
            return ray.get(reference, timeout=deadline_s)
        except GetTimeoutError:
            reason = (
                f"the conductor did not answer within deadlines.{setting}={deadline_s:g} s; see logs/conductor-0.log"
            )
            raise StallError(reason, role="learner", rank=self._rank) from None
        except RayError as error:
            raise typed(error, role=role, rank=rank) from error


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

"""Training a reward model on Ray: a worker group whose ranks run `loops/reward_training.py`, watched by the driver.

driver --plan--> TorchTrainer (1..L ranks, DDP) --rank 0--> OUT/progress.jsonl --> driver: progress, stalls
                                                `--------> OUT/backbone, heads, card, reward_report.json
"""

import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from negalign_ray.actors.cluster import require_room, shared_cluster
from negalign_ray.actors.packing import Placement
from negalign_ray.actors.processes import Background, open_log, thread_environment
from negalign_ray.actors.reward_plan import RewardPlan, make_reward_plan
from negalign_ray.data.answers import write_unpaired
from negalign_ray.errors import NegalignError, RoleError, StallError
from negalign_ray.rewards.reward_card import BACKBONE_FOLDER, CARD_FILE, HEADS_FILE, HeadCard, RewardCard
from negalign_ray.settings.reward import RewardTrainingConfig

log = logging.getLogger(__name__)
ROLE = "reward_learner"
REPORT_FILE, PLOT_FILE, PROGRESS_FILE, REST_FILE = (
    "reward_report.json",
    "calibration.png",
    "progress.jsonl",
    "rest.jsonl",
)
# The card goes first: what is left of an interrupted deletion is no reward model.
RESULTS = (CARD_FILE, HEADS_FILE, BACKBONE_FOLDER, REPORT_FILE, PLOT_FILE, "ray_train", REST_FILE, PROGRESS_FILE)
OnProgress = Callable[[str, dict[str, Any]], None]  # phase, the latest line of progress.jsonl
POLL_S = 0.5
CARD_FIGURES = ("auroc", "length_auroc", "pair_accuracy", "length_pair_accuracy", "ece", "ece_scaled", "num_prompts")


def ignore_progress(phase: str, row: dict[str, Any]) -> None:
    """For callers that watch nothing."""


def train_reward(
    config: RewardTrainingConfig,
    *,
    data: str,
    out: Path,
    overwrite: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> dict[str, Any]:
    """Train, measure, save to `out`, and return what stands in reward_report.json.

    Everything that can be checked is checked before Ray starts. Raises the typed error of the rank that failed first.
    """
    on_progress("checking", {})
    plan = make_reward_plan(config, data=data, out=out, overwrite=overwrite)
    _prepare_folder(plan)
    learners = config.learners
    with shared_cluster():
        require_room([Placement.of("learner", learners.num, learners)], patience_s=config.deadlines.place_s)
        on_progress("starting", {})
        _watch(Background(_make_trainer(plan).fit), plan, on_progress)
    return json.loads((plan.out / REPORT_FILE).read_text(encoding="utf-8"))


def _prepare_folder(plan: RewardPlan) -> None:
    plan.out.mkdir(parents=True, exist_ok=True)
    is_ours = any((plan.out / name).exists() for name in (CARD_FILE, PROGRESS_FILE))
    for name in RESULTS if is_ours else ():
        path = plan.out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if plan.config.data.frac < 1.0:
        write_unpaired(plan.rest, plan.out / REST_FILE)


def _make_trainer(plan: RewardPlan) -> TorchTrainer:
    learners = plan.config.learners
    uses_gpu = learners.gpus > 0
    resources = {"CPU": learners.cpus} | ({"GPU": learners.gpus} if uses_gpu else {})
    return TorchTrainer(
        _run_worker,
        train_loop_config={"plan": plan},
        torch_config=TorchConfig(
            backend="nccl" if uses_gpu else "gloo", timeout_s=int(plan.config.deadlines.step_s) or 1
        ),
        scaling_config=ray.train.ScalingConfig(
            num_workers=learners.num,
            use_gpu=uses_gpu,
            resources_per_worker=resources,
            label_selector=dict(learners.labels) or None,  # type: ignore[call-arg]  # as below
        ),
        run_config=ray.train.RunConfig(
            name="ray_train",
            storage_path=str(plan.out),
            # mypy sees the RunConfig of Train V1
            worker_runtime_env={"env_vars": thread_environment(str(learners.threads))},  # type: ignore[call-arg]
        ),
    )


# The driver


def _watch(trainer: Background, plan: RewardPlan, on_progress: OnProgress) -> None:
    """Until the ranks are done. Raises what ended them, or StallError when progress.jsonl stops growing."""
    deadlines, path = plan.config.deadlines, plan.out / PROGRESS_FILE
    num_bytes, alive_s = 0, time.monotonic()
    while trainer.is_running:
        trainer.wait(POLL_S)
        size = path.stat().st_size if path.exists() else 0
        if size > num_bytes:
            num_bytes, alive_s = size, time.monotonic()
            on_progress("training", _last_row(path))
        setting = "step_s" if num_bytes else "start_s"
        if trainer.is_running and time.monotonic() - alive_s > getattr(deadlines, setting):
            reason = (
                f"no sign of life within deadlines.{setting}={getattr(deadlines, setting):g} s; raise it, or see "
                f"{plan.out / 'logs'}"
            )
            raise StallError(reason, role=ROLE)
    if trainer.error is not None:
        raise _typed(trainer.error, plan) from trainer.error


def _last_row(path: Path) -> dict[str, Any]:
    """The newest whole line; {} where there is none yet."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n") and line.startswith(b"{")]
    return json.loads(whole[-1]) if whole else {}


def _typed(error: BaseException, plan: RewardPlan) -> NegalignError:
    """The typed error of a rank; anything else becomes a RoleError that names the logs."""
    failures = getattr(error, "worker_failures", {})
    # Ray wraps what a worker raised, with its traceback, and keeps the original in _base_exc.
    causes = {rank: getattr(failure, "_base_exc", failure) for rank, failure in sorted(failures.items())}
    for cause in causes.values():
        if isinstance(cause, NegalignError):
            return cause
    rank, cause = next(iter(causes.items()), (0, error))
    lines = str(cause).strip().splitlines() or [repr(cause)]
    return RoleError(f"{type(cause).__name__}: {lines[0]}; see {plan.out / 'logs'}", role=ROLE, rank=rank)


# A rank


def _run_worker(settings: dict[str, Any]) -> None:
    plan: RewardPlan = settings["plan"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    open_log(plan.out, f"{ROLE}-{rank}")
    torch.set_num_threads(plan.config.learners.threads)
    device = get_device() if plan.config.learners.gpus > 0 else "cpu"
    train_rank(plan, rank=rank, world_size=world_size, device=device)


def train_rank(plan: RewardPlan, *, rank: int, world_size: int, device: Any = "cpu") -> None:
    """One rank from the loaded backbone to the written report; rank 0 writes."""
    from negalign_ray.loops.reward_training import RewardLoop
    from negalign_ray.rewards.reward_network import RewardNetwork, load_backbone, make_encoder, save_reward_model

    config, started = plan.config, time.perf_counter()
    torch.manual_seed(config.seed)
    backbone = load_backbone(plan.model_path)
    encoder = make_encoder(
        plan.model_path, backbone.config, text_input=config.model.input, max_tokens=config.model.max_tokens
    )
    pooling = {"auto": "last" if encoder.is_causal else "mean"}.get(config.model.pooling, config.model.pooling)
    network = RewardNetwork(backbone, num_heads=len(config.heads), pooling=pooling)  # type: ignore[arg-type]
    report = _progress_writer(plan.out / PROGRESS_FILE) if rank == 0 else lambda row: None
    report({"phase": "loaded"})
    loop = RewardLoop(network, encoder, config, rank=rank, world_size=world_size, device=device, report=report)
    loop.run(plan.training)
    trained_s = time.perf_counter() - started
    heldout_RC = loop.rewards([row for unit in plan.heldout for row in unit.rows])
    if rank:
        return
    figures = _head_reports(plan, heldout_RC.numpy())
    seconds = {"training": trained_s, "measuring": time.perf_counter() - started - trained_s}
    heads = tuple(
        HeadCard(
            spec.name,
            spec.direction,
            spec.objective,
            temperature=found["temperature"],
            figures={key: found[key] for key in CARD_FIGURES} | {"verdict": found["verdict"]},
        )
        for spec, found in zip(config.heads, figures, strict=True)
    )
    card = RewardCard(
        pooling=network.pooling,
        text_input=encoder.text_input,
        max_tokens=encoder.max_tokens,
        is_causal=encoder.is_causal,
        heads=heads,
        settings=config.model_dump(mode="json"),
        data=plan.data_card,
    )
    whole = {"heads": figures, "data": plan.data_card, "settings": card.settings, "seconds": seconds}
    text = json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False)
    (plan.out / REPORT_FILE).write_text(text + "\n", encoding="utf-8")
    save_reward_model(plan.out, network=network.cpu(), encoder=encoder, card=card)


def _head_reports(plan: RewardPlan, heldout_RC: Any) -> list[dict[str, Any]]:
    import numpy as np

    from negalign_ray.evaluation.reward_report import head_report, head_rows

    num_rows = sum(len(unit.rows) for unit in plan.training)
    unknown_RC = np.zeros((num_rows, len(plan.config.heads)))  # of training rows only lengths and labels matter
    return [
        head_report(
            head.name,
            head.objective,
            head.direction,
            training=head_rows(plan.training, unknown_RC, head=column),
            heldout=head_rows(plan.heldout, heldout_RC, head=column),
            seed=plan.config.seed,
        )
        for column, head in enumerate(plan.config.heads)
    ]


def _progress_writer(path: Path) -> Callable[[dict[str, Any]], None]:
    """Appends JSON lines; `time_s` is the wall clock."""
    file = path.open("a", encoding="utf-8", buffering=1)

    def write(row: dict[str, Any]) -> None:
        file.write(json.dumps(row | {"time_s": round(time.time(), 3)}) + "\n")

    return write

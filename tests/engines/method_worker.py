"""Every method for two real optimizer steps: the training loop on the DeepSpeed engine, one process, no Ray."""

import os
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from negalign_ray.config import LearnersConfig
from negalign_ray.loops.schedule import SamplingSchedule
from negalign_ray.loops.training import TrainingLoop
from negalign_ray.methods import METHODS
from negalign_ray.methods.groups import RewardSource
from negalign_ray.records import Group, Prompt, Response, Role
from tests.loops.test_training import ListSource
from tests.methods.cases import CONFIGS

ROLES = (Role.NEGATIVE, Role.POSITIVE, Role.SAMPLE, Role.SAMPLE)
CONFIG = LearnersConfig(
    steps=2, groups_per_step=3, lr=1e-3, warmup_frac=0.0, micro_batch_tokens=40, mismatch_every=0, zero_stage=2
)


def three_groups() -> list[Group]:
    generator = torch.Generator().manual_seed(0)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (), generator=generator))
        return tuple(torch.randint(3, 304, (length,), generator=generator).tolist())

    groups = []
    for order_id in range(3):
        prompt = Prompt(order_id, "", (), tokens(2, 9), ())
        responses = []
        for index, role in enumerate(ROLES):
            answer = Response(role, tokens(2, 9), text="", rewards={"reward": 4.0 * index - 5.0 + order_id})
            reference = -6.0 * len(answer.token_ids)
            responses.append(replace(answer, ref_logprobs={"rpos": reference, "rneg": reference}))
        groups.append(Group(order_id, prompt, tuple(responses)))
    return groups


def run_all(_: int, model: Path, out: Path) -> None:
    """Method -> mean loss per group before each of the two updates, and the largest change of a weight."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=0, world_size=1)
    results = {name: train(name, model) for name in METHODS}
    torch.save(results, out / "results.pt")
    dist.destroy_process_group()


def train(name: str, model: Path) -> tuple[list[float], float]:
    from negalign_ray.engines.deepspeed_engine import DeepSpeedEngine

    engine = DeepSpeedEngine(model, config=CONFIG, dtype=torch.float32, seed=0)
    before = {key: tensor.clone() for key, tensor in engine.gather_weights()}
    source = ListSource(three_groups())
    TrainingLoop(
        learner=engine,
        source=source,
        method=METHODS[name],
        method_config=CONFIGS[name],
        config=CONFIG,
        schedule=SamplingSchedule(interval=False, online_from_step=9, refresh_every=1, staleness=0),
        rank=0,
        world_size=1,
        save_samples=lambda step, groups: None,
        reward=RewardSource("reward"),
    ).run()
    losses = [report.sums["learner/loss"] / report.counts["learner/loss"] for report in source.reports]
    changes = [(tensor - before[key]).abs().max().item() for key, tensor in engine.gather_weights()]
    return losses, max(changes)

"""One rank of the DeepSpeed engine tests: goes through every case in turn, so that starting it is paid for once."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from negalign_ray.config import D2OConfig, LearnersConfig, LoRAConfig
from negalign_ray.data.collate import share_of
from negalign_ray.methods import d2o
from negalign_ray.methods.groups import build_group_tensors
from negalign_ray.records import Group, Prompt, Response, Role

D2O = D2OConfig(alpha=0.1, beta=0.1)
FLOAT32_CASES = [(stage, budget) for stage in range(4) for budget in (40, 1000)]
BFLOAT16_STAGES = (1, 2, 3)
LORA_STAGES = (2, 3)


def learners_config(**settings) -> LearnersConfig:
    """Warm-up over 2 of 4 steps, cosine decay, clipping far below the gradient's norm.

    eps=1e-4 keeps Adam well conditioned: at 1e-8 a gradient of rounding-error size moves a weight by a whole lr.
    """
    defaults = {
        "steps": 4, "lr": 1e-2, "lr_schedule": "cosine", "warmup_frac": 0.5, "max_grad_norm": 0.5, "eps": 1e-4,
        "weight_decay": 0.01, "max_row_tokens": 24, "logit_chunk_tokens": 7,
    }  # fmt: skip
    return LearnersConfig(**{**defaults, **settings})


def batches() -> list[list[Group]]:
    """Four steps of groups of unequal length. Step 1 has a single group: with two ranks, one has nothing to do."""
    generator = torch.Generator().manual_seed(0)
    steps = []
    for num_groups in (5, 1, 3, 5):
        steps.append([_group(generator, order_id=order_id) for order_id in range(num_groups)])
    return steps


def _group(generator: torch.Generator, *, order_id: int) -> Group:
    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    def response(role: Role) -> Response:
        ids = tuple(integer(3, 304) for _ in range(integer(1, 9)))
        return Response(role, ids, text="", ref_logprobs={"rpos": -4.0 * len(ids), "rneg": -4.5 * len(ids)})

    roles = [Role.NEGATIVE] + [Role.SAMPLE] * integer(1, 5)
    prompt = Prompt(order_id, "", (), tuple(integer(3, 304) for _ in range(integer(2, 9))), ())
    return Group(order_id, prompt, tuple(map(response, roles)))


@dataclass
class Curve:
    """What training with one setting came to; `weights` are empty on ranks other than 0."""

    losses: list[float]
    grad_norms: list[float]
    lrs: list[float]
    weights: dict[str, torch.Tensor]
    weight_change: float = 0.0  # || weights - weights at the start ||


def train(engine, config: LearnersConfig) -> Curve:
    curve = Curve([], [], [], {})
    for groups in batches():
        plan = share_of(
            [group.num_tokens for group in groups],
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            micro_batch_tokens=config.micro_batch_tokens,
        )
        total = torch.zeros(())
        for number, indices in enumerate(plan):
            mine = [groups[i] for i in indices]
            logprobs_N = engine.logprobs(mine)
            loss = d2o.loss(build_group_tensors(mine, logprobs_N), D2O).loss_G.sum() if mine else logprobs_N.sum()
            engine.backward(loss / len(groups), is_last=number == len(plan) - 1)
            total += loss.detach() / len(groups)
        dist.all_reduce(total)
        stats = engine.step()
        curve.losses.append(total.item())
        curve.grad_norms.append(stats.grad_norm)
        curve.lrs.append(stats.lr)
    curve.weights = {name: tensor.clone() for name, tensor in engine.gather_weights()}
    change_sq = torch.tensor(engine.weight_change_sq(), dtype=torch.float64)
    dist.all_reduce(change_sq)
    curve.weight_change = change_sq.sqrt().item()
    return curve


def run_rank(rank: int, world_size: int, model: Path, out: Path) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{out}/store{world_size}", rank=rank, world_size=world_size)
    from negalign_ray.engines.deepspeed_engine import DeepSpeedEngine

    results = {}
    for stage, budget in FLOAT32_CASES:
        config = learners_config(zero_stage=stage, micro_batch_tokens=budget)
        engine = DeepSpeedEngine(model, config=config, dtype=torch.float32, seed=0)
        results["float32", stage, budget] = train(engine, config)
    results["export"] = _export(engine, model, out / f"exported{world_size}")
    results["token_logprobs"] = _token_logprobs(engine)
    for stage in BFLOAT16_STAGES:
        config = learners_config(zero_stage=stage, micro_batch_tokens=40)
        engine = DeepSpeedEngine(model, config=config, dtype=torch.bfloat16, seed=0)
        results["bfloat16", stage] = train(engine, config)
        masters = engine.gather_weights(torch.float32)
        results["masters", stage] = {name: tensor.clone() for name, tensor in masters}
    for stage in LORA_STAGES:
        lora = LoRAConfig(r=2, alpha=4, target_modules=("q_proj", "down_proj"))
        config = learners_config(zero_stage=stage, micro_batch_tokens=40, lora=lora)
        engine = DeepSpeedEngine(model, config=config, dtype=torch.float32, seed=0)
        results["lora", stage] = train(engine, config)
    torch.save(results, out / f"world{world_size}rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def _export(engine, tokenizer_folder: Path, folder: Path) -> dict[str, torch.Tensor]:
    for _ in range(2):  # the second one replaces the first
        engine.export(folder, tokenizer_folder)
    return {name: tensor.clone() for name, tensor in engine.gather_weights()}


def _token_logprobs(engine) -> tuple[list[torch.Tensor], torch.Tensor]:
    groups = batches()[0]
    with torch.no_grad():
        return engine.no_grad_token_logprobs(groups), engine.logprobs(groups)

"""What a run would do, before anything starts: who sits where, the batch arithmetic, and the memory of each role."""

import json
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from safetensors import safe_open

from negalign_ray.actors.cluster import placements
from negalign_ray.actors.plan import Plan
from negalign_ray.config import GuideConfig, LearnersConfig

GIB = 1024**3
BYTES = {"bfloat16": 2, "float32": 4}
GUIDE_LOGIT_TOKENS = 2048  # answer tokens whose exponentials wait for backward
PROCESS_BYTES = 600 * 2**20  # an idle process with torch and its role's library loaded, measured on Linux


@dataclass(frozen=True)
class ModelSize:
    num_params: int
    vocab_size: int
    hidden_size: int = 0  # 0 = not told by its config.json

    @classmethod
    def of(cls, folder: Path) -> "ModelSize":
        """From the safetensors headers; no tensor is read."""
        num_params = 0
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="np") as file:
                num_params += sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        config = json.loads((folder / "config.json").read_text())
        return cls(num_params, config["vocab_size"], config.get("hidden_size", 0))


def learner_bytes(size: ModelSize, config: LearnersConfig, dtype: str) -> int:
    """Weights, gradients and AdamW state of one rank under its ZeRO stage, plus one chunk of logits.

    bf16: 2 (weights) + 4 (fp32 gradient sums) + 12 (fp32 master, two moments) bytes per parameter; fp32: 4 + 4 + 8.
    ZeRO 1 shards the optimizer, 2 also the gradients, 3 also the weights (Rajbhandari et al. 2020, Fig. 1).
    """
    stage, ranks = config.zero_stage, config.num
    weights, gradients, optimizer = (2, 4, 12) if dtype == "bfloat16" else (4, 4, 8)
    trained = size.num_params if config.lora is None else size.num_params // 100  # adapters: about a hundredth
    per_rank = (
        weights * size.num_params / (ranks if stage >= 3 else 1)
        + gradients * trained / (ranks if stage >= 2 else 1)
        + optimizer * trained / (ranks if stage >= 1 else 1)
    )
    logits = config.logit_chunk_tokens * size.vocab_size * (BYTES[dtype] + 4)
    return ceil(per_rank + logits) + PROCESS_BYTES


def guide_bytes(config: GuideConfig, policy: ModelSize) -> int:
    """Encoder and decoder under AdamW in float32 (16 bytes a parameter), frozen embeddings, one chunk of logits."""
    if config.backbone is not None:
        fitted, frozen = 2 * ModelSize.of(Path(config.backbone)).num_params, 0
    else:
        per_layer = (4 + 3 * 4) * config.width**2  # attention, and a gated unit of four times the width
        hidden_size = policy.hidden_size
        fitted = 2 * (config.layers * per_layer + 2 * config.width * hidden_size + config.width * config.latent_size)
        frozen = policy.vocab_size * hidden_size
    return 16 * fitted + 4 * frozen + 2 * 4 * GUIDE_LOGIT_TOKENS * policy.vocab_size + PROCESS_BYTES


def role_bytes(plan: Plan) -> dict[str, int]:
    """Bytes per actor of each role (an estimate: activations and caches of libraries are left out)."""
    config, size = plan.config, ModelSize.of(plan.model_path)
    weights = size.num_params * BYTES[plan.sampler_dtype]
    kv_cache = 0 if config.samplers.gpus else int(config.samplers.kv_cache_gib * GIB)
    return {
        "sampler": weights + kv_cache + PROCESS_BYTES,
        "learner": learner_bytes(size, config.learners, plan.learner_dtype),
        "scorer": PROCESS_BYTES,
        "reference": weights + PROCESS_BYTES,
        "guide": guide_bytes(plan.config.guide, size),
    }


def describe(plan: Plan) -> RenderableType:
    return Group(_roles_table(plan), Text(), *(Text(line) for line in batch_lines(plan)))


def _roles_table(plan: Plan) -> Table:
    table = Table(title=f"{plan.config.run.name}: {plan.method.name} on {plan.config.model.path}", title_justify="left")
    for heading in ("role", "actors", "CPUs each", "GPUs each", "threads", "memory each"):
        table.add_column(heading, justify="left" if heading == "role" else "right")
    memory = role_bytes(plan)
    for place in placements(plan):
        table.add_row(
            place.role,
            str(place.num),
            f"{place.cpus:g}",
            f"{place.gpus:g}",
            str(place.threads),
            f"{memory[place.role] / GIB:.1f} GiB",
        )
    total = sum(memory[place.role] * place.num for place in placements(plan))
    table.add_section()
    cpus = sum(place.cpus * place.num for place in placements(plan))
    gpus = sum(place.gpus * place.num for place in placements(plan))
    table.add_row("all", "", f"{cpus:g}", f"{gpus:g}", "", f"{total / GIB:.1f} GiB")
    return table


def batch_lines(plan: Plan) -> list[str]:
    """How the two batch numbers and the schedule turn into work, in plain words."""
    config = plan.config
    learners, sampling = config.learners, config.sampling
    groups, ranks = learners.groups_per_step, learners.num
    steps_per_pass = len(plan.data.train) / groups
    lines = [
        f"data: {len(plan.data.train)} prompts to train on, {len(plan.data.heldout)} held out; "
        f"{learners.steps} steps of {groups} prompts = {learners.steps / steps_per_pass:.1f} passes",
        f"batch: {groups} prompts a step over {ranks} rank(s) = about {groups / ranks:g} each; forward and backward in "
        f"micro-batches of at most {learners.micro_batch_tokens} tokens (the loss does not depend on it)",
        f"number types: samplers and references {plan.sampler_dtype}, learners compute in {plan.learner_dtype} "
        "with float32 master weights",
    ]
    if plan.num_samples:
        lines.append(
            f"sampling: {plan.num_samples} answers a prompt, up to {sampling.max_new_tokens} tokens each, under "
            f"{len(plan.instructions) or 'no'} instructions; {_schedule_words(plan)}"
        )
    if plan.candidates:
        lines.append(
            f"candidates: the newest {max(plan.candidates.max_candidates, plan.num_samples)} own answers of a prompt; "
            f"those of its earlier passes fill up this step's {plan.num_samples}"
        )
    return lines


def _schedule_words(plan: Plan) -> str:
    sampling = plan.config.sampling
    start = f"initial model before step {sampling.online_from_step}, then " if sampling.online_from_step else ""
    if sampling.schedule == "interval":
        follow = ", which the references follow" if plan.config.references.follow == "snapshot" else ""
        return f"{start}a new snapshot every {sampling.refresh_every} steps{follow}"
    if sampling.staleness == 0:
        return f"{start}strictly on-policy (sampling and training alternate)"
    return f"{start}at most {sampling.staleness} step(s) old (sampling and training overlap)"

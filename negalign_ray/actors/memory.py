"""How much memory an actor of each role needs, by what it is for. Nothing is loaded: headers and config.json are read.

An estimate from below: what libraries cache and pages of the object store that a process maps are left out.
"""

import json
from dataclasses import dataclass, fields
from math import ceil, prod
from pathlib import Path

from safetensors import safe_open

from negalign_ray.actors.plan import Plan
from negalign_ray.config import GuideConfig, LearnersConfig, SamplersConfig

GIB = 1024**3
BYTES = {"bfloat16": 2, "float32": 4}
GUIDE_LOGIT_TOKENS = 2048  # answer tokens whose exponentials wait for backward
PROCESS_BYTES = 600 * 2**20  # an idle process with torch and its role's library loaded, measured on Linux
ADAPTER_FRAC = 0.01  # LoRA trains about a hundredth of the weights


@dataclass(frozen=True)
class ModelSize:
    num_params: int
    vocab_size: int
    hidden_size: int = 0  # 0 = not told by its config.json, as below
    num_layers: int = 0
    kv_width: int = 0  # key-value heads x head size

    @classmethod
    def of(cls, folder: Path) -> "ModelSize":
        """From the safetensors headers; no tensor is read."""
        num_params = 0
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="np") as file:
                num_params += sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        config = json.loads((folder / "config.json").read_text())
        hidden_size, num_heads = config.get("hidden_size", 0), config.get("num_attention_heads") or 1
        head_size = config.get("head_dim") or hidden_size // num_heads
        return cls(
            num_params,
            config["vocab_size"],
            hidden_size,
            num_layers=config.get("num_hidden_layers", 0),
            kv_width=(config.get("num_key_value_heads") or num_heads) * head_size,
        )

    def kv_bytes_per_token(self, dtype: str) -> int:
        """Keys and values of every layer."""
        return 2 * self.num_layers * self.kv_width * BYTES[dtype]


@dataclass(frozen=True)
class Memory:
    """Bytes of one actor. With GPUs, all but `process` lies on the devices."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0  # with the float32 master weights, where there are any
    activations: int = 0
    kv_cache: int = 0
    logits: int = 0
    process: int = PROCESS_BYTES

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    def host(self, *, gpus: float) -> int:
        return self.process if gpus else self.total

    def device(self, *, gpus: float) -> int:
        return self.total - self.process if gpus else 0


def learner_memory(size: ModelSize, config: LearnersConfig, dtype: str) -> Memory:
    """One rank under its ZeRO stage.

    bf16: 2 (weights) + 4 (fp32 gradient sums) + 12 (fp32 master, two moments) bytes per parameter; fp32: 4 + 4 + 8.
    ZeRO 1 shards the optimizer, 2 also the gradients, 3 also the weights (Rajbhandari et al. 2020, Fig. 1).
    Activations: 17 values per token, layer and unit of width wait for backward (Korthikanti et al. 2022, Eq. 2, without
    the attention matrix, which the attention kernel does not keep); with checkpointing 1.
    """
    stage, ranks = config.zero_stage, config.num
    weights, gradients, optimizer = (2, 4, 12) if dtype == "bfloat16" else (4, 4, 8)
    trained = size.num_params * (1.0 if config.lora is None else ADAPTER_FRAC)
    values = (
        config.micro_batch_tokens * size.num_layers * size.hidden_size * (1 if config.gradient_checkpointing else 17)
    )
    return Memory(
        weights=ceil(weights * size.num_params / (ranks if stage >= 3 else 1)),
        gradients=ceil(gradients * trained / (ranks if stage >= 2 else 1)),
        optimizer=ceil(optimizer * trained / (ranks if stage >= 1 else 1)),
        activations=values * BYTES[dtype],
        logits=config.logit_chunk_tokens * size.vocab_size * (BYTES[dtype] + 4),
    )


def sampler_memory(size: ModelSize, config: SamplersConfig, dtype: str, *, gpu_bytes: int | None) -> Memory:
    """On a GPU vLLM takes its share of the device and fills with the KV cache what the weights leave of it."""
    weights = ceil(size.num_params * BYTES[dtype] / config.tensor_parallel_size)  # on each of its devices
    if not config.gpus:
        return Memory(weights=weights, kv_cache=int(config.kv_cache_gib * GIB))
    share = int(config.gpu_memory_utilization * (gpu_bytes or 0))
    return Memory(weights=weights, kv_cache=max(0, share - weights))


def guide_memory(config: GuideConfig, policy: ModelSize) -> Memory:
    """Encoder and decoder under AdamW in float32 (16 bytes a parameter), frozen embeddings, one chunk of logits."""
    if config.backbone is not None:
        fitted, frozen = 2 * ModelSize.of(Path(config.backbone)).num_params, 0
    else:
        per_layer = (4 + 3 * 4) * config.width**2  # attention, and a gated unit of four times the width
        hidden_size = policy.hidden_size
        fitted = 2 * (config.layers * per_layer + 2 * config.width * hidden_size + config.width * config.latent_size)
        frozen = policy.vocab_size * hidden_size
    return Memory(
        weights=4 * (fitted + frozen),
        gradients=4 * fitted,
        optimizer=8 * fitted,
        logits=2 * 4 * GUIDE_LOGIT_TOKENS * policy.vocab_size,
    )


def role_memory(plan: Plan, *, gpu_bytes: int | None = None) -> dict[str, Memory]:
    """One actor of each role; `gpu_bytes` = memory of one device, where it is known."""
    config, size = plan.config, ModelSize.of(plan.model_path)
    frozen = Memory(weights=size.num_params * BYTES[plan.sampler_dtype])
    return {
        "sampler": sampler_memory(size, config.samplers, plan.sampler_dtype, gpu_bytes=gpu_bytes),
        "learner": learner_memory(size, config.learners, plan.learner_dtype),
        "scorer": Memory(),
        "reference": frozen,
        "guide": guide_memory(config.guide, size),
        "evaluation scorer": Memory(),
        "evaluation reference": frozen,
    }

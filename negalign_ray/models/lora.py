"""LoRA through peft, injected in place; samplers and exports get the merged weights under the original names."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from negalign_ray.config import LoRAConfig
from negalign_ray.errors import ModelError

ADAPTER = "default"


def inject_lora(model: PreTrainedModel, config: LoRAConfig) -> None:
    """Freeze `model` and add trainable adapters to its linear layers, in place.

    ModelError: a target that names no linear layer of the model, or the output head (which must stay a plain product).
    """
    _check_targets(model, config.target_modules)
    targets = config.target_modules
    peft_config = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft divides by r; a float is fine
        lora_dropout=0.0,  # a loss that compares the policy with frozen references would read noise as a change
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
    )
    inject_adapter_in_model(peft_config, model, adapter_name=ADAPTER)


@dataclass(frozen=True, slots=True)
class Adapter:
    factor: float  # alpha / r
    is_transposed: bool = False  # the layer keeps its weight as [I, O] (Conv1D, of GPT-2)


def lora_adapters(model: nn.Module) -> dict[str, Adapter]:
    """Of each module that has one, by its name; empty without LoRA."""
    return {
        name: Adapter(module.scaling[ADAPTER], is_transposed=isinstance(module.get_base_layer(), Conv1D))
        for name, module in model.named_modules()
        if isinstance(module, LoraLinear)
    }


def merged_weights(
    named: Mapping[str, Tensor], adapters: Mapping[str, Adapter], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Tensors under the names of the original state dict, in `dtype`; `named` itself is left untouched.

        q_proj.base_layer.weight + alpha / r * lora_B.weight @ lora_A.weight (in float32) -> q_proj.weight

    bfloat16 keeps three digits of a sum: an adapter that is still small beside its layer is mostly rounded away.

    `named` holds the injected model's full tensors by parameter name, `adapters` come from `lora_adapters`.
    """
    for name, tensor in named.items():
        if ".lora_A." in name or ".lora_B." in name:
            continue
        module, _, leaf = name.rpartition(".base_layer.")
        if not module:
            yield name, tensor.to(dtype)
        elif leaf == "weight":
            down_RI = named[f"{module}.lora_A.{ADAPTER}.weight"]
            up_OR = named[f"{module}.lora_B.{ADAPTER}.weight"]
            adapter = adapters[module]
            delta_OI = adapter.factor * (up_OR.float() @ down_RI.float())
            delta = delta_OI.T if adapter.is_transposed else delta_OI
            yield f"{module}.weight", (tensor.float() + delta).to(dtype)
        else:
            yield f"{module}.{leaf}", tensor.to(dtype)


def _check_targets(model: PreTrainedModel, targets: str | tuple[str, ...]) -> None:
    if targets == "all-linear":
        return
    head = model.get_output_embeddings()
    linear = nn.Linear | Conv1D
    names = [name for name, module in model.named_modules() if isinstance(module, linear) and module is not head]
    for target in (targets,) if isinstance(targets, str) else targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            known = sorted({name.rpartition(".")[2] for name in names})
            raise ModelError(
                f"learners.lora.target_modules: {target!r} is no linear layer of {type(model).__name__}; "
                f"use 'all-linear' or some of {known}."
            )

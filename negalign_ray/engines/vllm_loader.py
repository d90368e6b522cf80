"""How vLLM holds weights so that they can be replaced and checked: plain parameters, plus packed copies on a CPU.

On a CPU vLLM packs every linear weight into a layout that only the matrix kernel knows and frees the original, so that
nothing can be loaded into it or read back. `negalign` is a vLLM load format that keeps the originals: an update copies
into them with the model's own loader (which knows how every architecture fuses its parameters), packs anew, and proves
with exact column probes that the packed copies are the new weights. The cost is the linear weights' memory once more;
packing itself pays: SmolLM2, float32, one thread, 32 sequences: 158 new tokens/s packed, 143 plain.

On a GPU the parameters are used as they are; nothing here runs.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config.load import LoadConfig
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

LOAD_FORMAT = "negalign"


@register_model_loader(LOAD_FORMAT)
class KeepOriginalsLoader(DefaultModelLoader):
    """Safetensors only; leaves CPU linear layers unpacked until `pack` is called."""

    def __init__(self, load_config: LoadConfig):
        super().__init__(dataclasses.replace(load_config, load_format="safetensors"))

    def load_weights(self, model: nn.Module, model_config) -> None:
        super().load_weights(model, model_config)
        for _, layer in linear_layers(model):
            layer._cpu_skip_gemm_dispatch = True  # vLLM's own switch: process_weights_after_loading keeps `weight`


def linear_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Unquantised linear layers, without the embedding and the output head."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, LinearBase) and isinstance(module.quant_method, UnquantizedLinearMethod)
    ]


def packable_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Layers whose `cpu_linear` multiplies with a packed copy: the linear ones and the output head.

    An embedding that is only ever looked up gets no packed copy (vLLM makes one all the same).
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    head = modules.get("lm_head")
    embeddings: list[tuple[str, Any]] = [
        (n, m) for n, m in model.named_modules() if isinstance(m, VocabParallelEmbedding)
    ]
    layers = linear_layers(model)
    for name, module in embeddings:
        if head is None or module is head:
            layers.append((name, module))
        else:
            module.cpu_linear = nn.functional.linear
    return layers


def pack(layers: list[tuple[str, Any]]) -> None:
    """Pack every layer's current weight with the kernel that vLLM itself would choose; the old copy is freed."""
    for _, layer in layers:
        dispatch_cpu_unquantized_gemm(layer, remove_weight=False)


@torch.inference_mode()
def stale_layers(layers: list[tuple[str, Any]], *, seed: int) -> list[str]:
    """Names of layers whose packed copy differs from their weight in one of two columns, drawn by `seed`.

    Multiplying a one-hot row reads one column of the packed matrix exactly (1 * w + 0 * ... has no rounding), at the
    price of one pass over memory; after an optimizer step nearly every column differs from its old self.
    """
    generator = torch.Generator().manual_seed(seed)
    return [name for name, layer in layers if not _columns_agree(layer, generator)]


def _columns_agree(layer: Any, generator: torch.Generator) -> bool:
    weight: Tensor = layer.weight
    columns = torch.randint(weight.shape[1], (2,), generator=generator)
    one_hot = torch.zeros(2, weight.shape[1], dtype=weight.dtype)
    one_hot[torch.arange(2), columns] = 1
    return torch.equal(layer.cpu_linear(one_hot, weight, None), weight[:, columns].t())

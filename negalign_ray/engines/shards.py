"""The checksum of weights that vLLM has split over the workers of a sampler (tensor parallelism).

The checksum is made of sums (weights.py), so the shards of a parameter add up to the whole, wherever it was cut. What
every worker has a copy of counts once, and the copies must be equal: a worker that kept older ones would hide behind
the others. A parameter is therefore told in parts, each with the place that it takes in the whole:

    worker 0   qkv_proj "q0" "kv0"   o_proj "0"   norm ""        4 workers, 2 key-value heads:
    worker 1   qkv_proj "q1" "kv0"   o_proj "1"   norm ""        kv0 is on workers 0 and 1, kv1 on 2 and 3
    worker 2   qkv_proj "q2" "kv1"   o_proj "2"   norm ""

Which layers are cut how is read off vLLM's layer classes. An architecture for which that is wrong has another checksum
than its files at the start, or copies that differ, and is refused then (ModelError): no rule here has to be trusted.
"""

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from negalign_ray.engines.weights import TensorSpec, WeightBundle, digest_of, group_of, power_sums
from negalign_ray.errors import WeightUpdateError

SHARED_MEMORY = Path("/dev/shm")


class Part(NamedTuple):
    name: str  # of the parameter
    place: str  # in the whole; parts of one name and place are copies
    s1: int
    s2: int


class Shards:
    """The weights of an engine with several workers."""

    def __init__(self, llm: Any, dtype: torch.dtype) -> None:
        self._llm, self._dtype = llm, dtype

    def load(self, bundle: WeightBundle) -> None:
        """Each worker reads its shards from one copy in shared memory. What vLLM raises comes through."""
        folder = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
        with tempfile.NamedTemporaryFile(prefix="negalign-", dir=folder) as file:
            file.write(bundle.buffer.data)
            file.flush()
            self._llm.apply_model(partial(load_file, path=file.name, index=bundle.index))

    def checksum(self) -> int:
        """WeightUpdateError when copies differ."""
        return whole_checksum(self._llm.apply_model(partial(parts_of, dtype=self._dtype)))


@torch.inference_mode()
def load_file(model: nn.Module, *, path: str, index: tuple[TensorSpec, ...]) -> None:
    """In a worker: load the bundle whose buffer is that file."""
    buffer = np.memmap(path, dtype=np.uint8, mode="r")
    model.load_weights(WeightBundle(0, index, buffer, checksum=0).tensors())  # type: ignore[operator]
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()  # the file goes away


def parts_of(model: nn.Module, *, dtype: torch.dtype) -> list[Part]:
    """In a worker: all that it holds, as it would be in `dtype`."""
    parts, seen = [], set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if parameter in seen:  # tied weights count once
                continue
            seen.add(parameter)
            for place, tensor in _places(module, name.rpartition(".")[2], parameter):
                parts.append(Part(name, place, *power_sums(tensor.to(dtype))))
    return parts


def _places(module: Any, name: str, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    is_cut = isinstance(module, ColumnParallelLinear | RowParallelLinear | VocabParallelEmbedding)
    if not is_cut or module.tp_size == 1 or (isinstance(module, RowParallelLinear) and name == "bias"):
        yield "", parameter
    elif isinstance(module, QKVParallelLinear):
        q_rows = module.num_heads * module.head_size
        yield f"q{module.tp_rank}", parameter[:q_rows]
        yield f"kv{module.tp_rank // module.num_kv_head_replicas}", parameter[q_rows:]
    else:
        yield f"{module.tp_rank}", parameter


def whole_checksum(workers: Iterable[Sequence[Part]]) -> int:
    """Equal to `checksum_of` the parameters before they were split. WeightUpdateError when copies of a part differ."""
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for parts in workers:
        for name, place, s1, s2 in parts:
            if sums.setdefault((name, place), (s1, s2)) != (s1, s2):
                raise WeightUpdateError(
                    f"the copies of {name} on the workers of this sampler differ; replace it", role="sampler"
                )
    groups: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for (name, _), (s1, s2) in sums.items():
        group = groups[group_of(name)]
        group[0] += s1
        group[1] += s2
    return digest_of(groups)

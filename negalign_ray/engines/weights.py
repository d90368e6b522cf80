"""Policy weights on their way from the learner to the samplers: one flat buffer, one index, one checksum.

    learner rank 0 --WeightBundle.from_tensors--> object store (zero-copy) --tensors()--> sampler's own parameters
                          |                                                                     |
                          +------ checksum ------------------- must be equal ------- checksum_of(own memory)

The checksum has to be computable from an inference engine's memory, where q, k and v (or gate and up) are one fused
parameter, the vocabulary is padded with zero rows, and blocks may be laid out for the matrix kernels. It is therefore
built from sums that do not depend on the place of an element: for each fused group of parameters

    s1 = SUM bits,   s2 = SUM bits^2 (mod 2^64),   bits = the element's raw bits as an unsigned integer,

and the checksum is SUM over groups of blake2b(group name, s1, s2) mod 2^64.

Detected for certain (up to a 64-bit hash collision): any change of one element, down to one bit; a parameter that
kept older values, unless old and new are permutations of each other; a missing group; values moved between groups, e.g.
two layers swapped. Missed with chance 2^-64: other changes of several elements. Not detected: a permutation of the
elements within one group (q swapped with k of one layer), and zeros added or removed. It guards against faults, not
against forgery.
"""

import hashlib
import json
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from negalign_ray.errors import ModelError, WeightUpdateError
from negalign_ray.models.derived import DERIVED_SUFFIXES

MASK_64 = 2**64 - 1
ALIGN_BYTES = 64  # cache line; also a multiple of every element size, which Tensor.view(dtype) demands
FIRST_ARENA_BYTES = 1 << 26
CPU_CHUNK = 1 << 16  # elements; 256 KiB of float32 are read from memory once and summed twice from the L2 cache
GPU_CHUNK = 1 << 24  # elements; bounds the int64 temporaries to 128 MiB each
BITS_DTYPE = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
DTYPE_NAME = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
DTYPE = {name: dtype for dtype, name in DTYPE_NAME.items()}
BUFFER_FILE, INDEX_FILE = "snapshot.bin", "snapshot.json"
FUSED = (
    (re.compile(r"\b(?:q_proj|k_proj|v_proj)\b"), "qkv_proj"),
    (re.compile(r"\b(?:gate_proj|up_proj)\b"), "gate_up_proj"),
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Where one tensor lies in the buffer."""

    name: str  # Hugging Face parameter name
    shape: tuple[int, ...]
    dtype: str  # "bfloat16" | "float16" | "float32"
    offset: int  # bytes from the start of the buffer, a multiple of ALIGN_BYTES

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * DTYPE[self.dtype].itemsize


@dataclass(frozen=True, eq=False)
class WeightBundle:
    """All weights of one version. Pickles with protocol 5 without copying `buffer` (Ray's object store maps it)."""

    version: int
    index: tuple[TensorSpec, ...]
    buffer: np.ndarray  # uint8, one dimension, contiguous; bfloat16 is not a numpy dtype, hence bytes
    checksum: int  # see the module's docstring

    @property
    def num_bytes(self) -> int:
        return self.buffer.nbytes

    @classmethod
    def from_tensors(
        cls, named: Iterable[tuple[str, Tensor]], *, version: int, dtype: torch.dtype | None = None
    ) -> "WeightBundle":
        """Copy `named` (any device) into a new buffer, cast to `dtype` (None: kept).

        Each tensor is copied before the next one is asked for, so a generator may gather sharded parameters one by
        one; for a list the buffer is allocated once, which takes half the time. Tied weights must appear once, as
        `named_parameters()` gives them. Raises ModelError for a repeated name or
        a dtype without a place here (quantised weights).
        """
        specs: list[TensorSpec] = []
        arena = _Arena(_padded_total(named, dtype) if isinstance(named, Sequence) else FIRST_ARENA_BYTES)
        for name, tensor in named:
            kind = tensor.dtype if dtype is None else dtype
            if kind not in DTYPE_NAME:
                raise ModelError(f"{name} has dtype {kind}; only {', '.join(DTYPE)} weights can be sent to samplers.")
            specs.append(TensorSpec(name, tuple(tensor.shape), DTYPE_NAME[kind], arena.used))
            arena.append(tensor.detach(), kind)
        names = [spec.name for spec in specs]
        if len(set(names)) != len(names):
            repeated = sorted({name for name in names if names.count(name) > 1})
            raise ModelError(f"weights {repeated} appear twice; pass each parameter once, tied weights included.")
        index, buffer = tuple(specs), arena.buffer[: arena.used]
        return cls(version, index, buffer, checksum_of(_views(index, buffer)))

    def save(self, folder: Path) -> None:
        """As two files, for a checkpoint: the buffer as it is, and what it holds."""
        (folder / BUFFER_FILE).write_bytes(self.buffer.data)
        index = {"version": self.version, "checksum": self.checksum, "tensors": [asdict(spec) for spec in self.index]}
        (folder / INDEX_FILE).write_text(json.dumps(index))

    @classmethod
    def load(cls, folder: Path) -> "WeightBundle":
        """What `save` wrote. ModelError when the buffer does not have the checksum that it had."""
        index = json.loads((folder / INDEX_FILE).read_text())
        specs = tuple(TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in index["tensors"])
        buffer = np.fromfile(folder / BUFFER_FILE, dtype=np.uint8)
        if buffer.size < max((spec.offset + spec.num_bytes for spec in specs), default=0) or (
            checksum_of(_views(specs, buffer)) != index["checksum"]
        ):
            raise ModelError(f"{folder / BUFFER_FILE} is not what was written; use another checkpoint.")
        return cls(index["version"], specs, buffer, index["checksum"])

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Zero-copy views in index order. Read-only: the memory may be shared with every process on the machine."""
        return _views(self.index, self.buffer)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // ALIGN_BYTES) * ALIGN_BYTES


def _padded_total(named: Sequence[tuple[str, Tensor]], dtype: torch.dtype | None) -> int:
    return sum(_padded(tensor.numel() * (dtype or tensor.dtype).itemsize) for _, tensor in named)


class _Arena:
    """A byte buffer that grows by doubling; pages that are never written take no memory."""

    def __init__(self, capacity_bytes: int):
        self.buffer, self.used = np.empty(capacity_bytes, dtype=np.uint8), 0

    def append(self, tensor: Tensor, dtype: torch.dtype) -> None:
        """Copy (and cast) in one pass, then pad with zeros to the next multiple of ALIGN_BYTES."""
        num_bytes = tensor.numel() * dtype.itemsize
        end = self.used + _padded(num_bytes)
        if end > self.buffer.nbytes:
            grown = np.empty(max(end, 2 * self.buffer.nbytes), dtype=np.uint8)
            grown[: self.used] = self.buffer[: self.used]
            self.buffer = grown
        place = self.buffer[self.used : end]
        torch.from_numpy(place[:num_bytes]).view(dtype).view(tensor.shape).copy_(tensor)
        place[num_bytes:] = 0
        self.used = end


def _views(index: Iterable[TensorSpec], buffer: np.ndarray) -> Iterator[tuple[str, Tensor]]:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*not writable.*"
        )  # the store maps objects read-only, as we use them
        flat = torch.from_numpy(buffer)
    yield from tensors_in(flat, index)


def tensors_in(flat: Tensor, index: Iterable[TensorSpec]) -> Iterator[tuple[str, Tensor]]:
    """Views of a buffer of bytes, on whichever device it lies."""
    for spec in index:
        yield spec.name, flat[spec.offset : spec.offset + spec.num_bytes].view(DTYPE[spec.dtype]).view(spec.shape)


def group_of(name: str) -> str:
    """Name of the fused parameter that `name` is part of: `layers.0.self_attn.k_proj.weight` -> `...qkv_proj.weight`.

    Llama, Mistral, Qwen2, Qwen3 and Gemma are fused this way by inference engines; Phi-3 ships fused.
    """
    for pattern, fused in FUSED:
        name = pattern.sub(fused, name)
    return name


def power_sums(tensor: Tensor) -> tuple[int, int]:
    """(s1, s2) of the module's docstring, each mod 2^64. About 1.2 ns per element on one CPU core.

    Example: float32 [1.0, 0.0] has bits [0x3F800000, 0] -> (0x3F800000, 0x3F800000**2).
    """
    if tensor.dtype not in BITS_DTYPE:
        raise ModelError(f"a weight of dtype {tensor.dtype} cannot be checked; use {', '.join(DTYPE)}.")
    bits = tensor.detach().reshape(-1).view(BITS_DTYPE[tensor.dtype])
    return _power_sums_numpy(bits) if bits.device.type == "cpu" else _power_sums_torch(bits)


def _power_sums_numpy(bits: Tensor) -> tuple[int, int]:
    unsigned: Any = bits.numpy().view(np.uint16 if bits.dtype == torch.int16 else np.uint32)
    s1 = s2 = 0
    for start in range(0, unsigned.size, CPU_CHUNK):
        chunk = unsigned[start : start + CPU_CHUNK]
        s1 += int(chunk.sum(dtype=np.uint64))
        s2 += int(np.einsum("i,i->", chunk, chunk, dtype=np.uint64, casting="safe"))
    return s1 & MASK_64, s2 & MASK_64


def _power_sums_torch(bits: Tensor) -> tuple[int, int]:
    """The same on an accelerator; int64 arithmetic wraps mod 2^64, which is what is wanted."""
    unsign = (1 << 8 * bits.itemsize) - 1
    sums = torch.zeros(2, dtype=torch.int64, device=bits.device)
    for chunk in bits.split(GPU_CHUNK):
        wide = chunk.to(torch.int64) & unsign
        sums += torch.stack((wide.sum(), (wide * wide).sum()))
    s1, s2 = sums.tolist()
    return s1 & MASK_64, s2 & MASK_64


def checksum_of(named: Iterable[tuple[str, Tensor]]) -> int:
    """Checksum in [0, 2^64) of parameters given under their own or their fused names, in any order."""
    groups: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, tensor in named:
        s1, s2 = power_sums(tensor)
        group = groups[group_of(name)]
        group[0] += s1
        group[1] += s2
    return digest_of(groups)


def digest_of(groups: Mapping[str, Sequence[int]]) -> int:
    """The checksum, from the (s1, s2) of every fused group."""
    total = 0
    for name, (s1, s2) in groups.items():
        text = f"{name} {s1 & MASK_64:x} {s2 & MASK_64:x}".encode()
        total += int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return total & MASK_64


@torch.no_grad()
def load_in_place(model: nn.Module, bundle: WeightBundle, *, role: str, before: int | None) -> int:
    """Copy every tensor of the bundle into the parameter of its name, and return the checksum read back from there.

    `before` is the version held so far (None: that of the model folder). Raises WeightUpdateError, naming `role`, when
    names, a shape or the checksum differ; the weights are mixed then.
    """

    def failure(reason: str) -> WeightUpdateError:
        return WeightUpdateError(reason, role=role, weight_version=bundle.version)

    own = dict(model.named_parameters())
    names = {spec.name for spec in bundle.index}
    if names != own.keys():
        odd = sorted(names ^ own.keys())
        raise failure(f"the bundle and the model differ in {len(odd)} weights, for example {odd[0]}.")
    for name, tensor in bundle.tensors():
        if own[name].shape != tensor.shape:
            raise failure(f"{name} has shape {tuple(tensor.shape)}, not {tuple(own[name].shape)}.")
        own[name].copy_(tensor)
    return confirmed(checksum_of(own.items()), bundle, role=role, before=before)


class Announced(Protocol):
    """What the learner said of new weights."""

    @property
    def version(self) -> int: ...

    @property
    def checksum(self) -> int: ...


def confirmed(loaded: int, bundle: Announced, *, role: str, before: int | None) -> int:
    """`loaded`, the checksum read back after an update; WeightUpdateError when the learner announced another."""
    if loaded != bundle.checksum:
        reason = (
            f"loaded weights have checksum {loaded:016x}, but the learner announced {bundle.checksum:016x} for "
            f"v{bundle.version} (before: v{before}); the bundle is damaged or incomplete. Replace this {role}."
        )
        raise WeightUpdateError(reason, role=role, weight_version=bundle.version)
    return loaded


def read_safetensors(model_path: Path | str, *, tied: bool) -> Iterator[tuple[str, Tensor]]:
    """All parameters of a model folder; with `tied`, a stored copy of the output head is left out.

    Raises ModelError when the folder holds no `*.safetensors` (pickled weights are never read).
    """
    files = sorted(Path(model_path).glob("*.safetensors"))
    if not files:
        raise ModelError(f"{model_path} holds no *.safetensors file; convert the model with save_pretrained first.")
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a dict, and not iterable
                if not name.endswith(DERIVED_SUFFIXES) and not (tied and name == "lm_head.weight"):
                    yield name, tensors.get_tensor(name)

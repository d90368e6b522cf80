"""Which number type a role computes in."""

from pathlib import Path
from typing import Literal

from negalign_ray.config import Dtype
from negalign_ray.errors import ConfigError

ComputeDtype = Literal["bfloat16", "float32"]

BF16_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # x86 names, and Arm's


def resolve_dtype(dtype: Dtype, *, gpus: float) -> ComputeDtype:
    """ "bfloat16" or "float32". Without native bf16 products a CPU is several times slower in bf16 than in fp32."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if gpus > 0 or cpu_multiplies_bfloat16() else "float32"


def require_exact_accumulation(zero_stage: int, dtype: ComputeDtype) -> None:
    """ConfigError for ZeRO 0 in bfloat16: DeepSpeed keeps float32 gradient sums only from stage 1 on."""
    if zero_stage == 0 and dtype != "float32":
        raise ConfigError(
            "learners.zero_stage=0 with bfloat16 would accumulate gradients in bfloat16; set learners.zero_stage=1 "
            "(same memory on one rank, less on several) or learners.dtype=float32."
        )


def cpu_multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    if not cpuinfo.exists():
        return False
    for line in cpuinfo.read_text().splitlines():
        name, _, flags = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return bool(BF16_CPU_FLAGS & set(flags.split()))
    return False

"""Groups written down by hand or drawn by hypothesis, and what the tests of every method share.

# Axes: G = groups, R = responses per group, padded. Everything is float64 unless a test says otherwise.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from negalign_ray.config import (
    CLHAConfig,
    D2OConfig,
    DPOConfig,
    GAConfig,
    IPOConfig,
    LDAlignConfig,
    NEATConfig,
    NPOConfig,
    PROConfig,
    RRHFConfig,
    SFTConfig,
    SimPOConfig,
    SLiCConfig,
    SPINConfig,
    UnlikelihoodConfig,
)
from negalign_ray.methods import METHODS
from negalign_ray.methods.groups import GroupTensors, LossOutput
from negalign_ray.records import Polarity, Role

CONFIGS: dict[str, Any] = {
    "d2o": D2OConfig(alpha=0.2, beta=0.3),
    "neat": NEATConfig(ft_weight=0.5),
    "ld_align": LDAlignConfig(beta=0.2),
    "clha": CLHAConfig(margin=2.5),
    "dpo": DPOConfig(beta=0.2),
    "ga": GAConfig(),
    "ipo": IPOConfig(beta=0.2),
    "npo": NPOConfig(beta=0.2),
    "pro": PROConfig(),
    "rrhf": RRHFConfig(ft_weight=0.5),
    "sft": SFTConfig(),
    "simpo": SimPOConfig(),
    "slic": SLiCConfig(beta=0.05),
    "spin": SPINConfig(beta=0.2),
    "unlikelihood": UnlikelihoodConfig(),
}
LOG2 = 0.6931471805599453


@dataclass(frozen=True)
class Row:
    """One response: its role, its log-probs under the policy and both references, its length."""

    role: Role
    lp: float
    rpos: float = 0.0
    rneg: float = 0.0
    length: int = 1
    reward: float = math.nan
    polarity: Polarity | None = None
    complement: float = -1.0  # SUM_t log(1 - p(y_t))
    carried: bool = False


def negative(lp: float, *, ref: float = 0.0, reward: float = math.nan) -> Row:
    return Row(Role.NEGATIVE, lp, ref, ref, reward=reward)


def positive(lp: float, *, ref: float = 0.0, length: int = 1, reward: float = math.nan) -> Row:
    return Row(Role.POSITIVE, lp, ref, ref, length, reward)


def sample(lp: float, *, ref: float = 0.0, reward: float = math.nan, polarity: Polarity | None = None) -> Row:
    return Row(Role.SAMPLE, lp, ref, ref, reward=reward, polarity=polarity)


def tensors(
    rows: Sequence[Sequence[Row]],
    *,
    dtype: torch.dtype = torch.float64,
    batch: Sequence[Sequence[Row]] | None = None,
) -> GroupTensors:
    """Padded as the dataclass documents; `logprobs_GR` and the complements are leaves that want a gradient.

    `batch` holds all groups of the optimizer step, where `rows` are only some of them.
    """
    width = max((len(group) for group in rows), default=0)

    def lay_out(values: list[list], fill, kind: torch.dtype) -> Tensor:
        padded = [group + [fill] * (width - len(group)) for group in values]
        return torch.tensor(padded, dtype=kind).reshape(len(rows), width)

    def where(chosen: Callable[[Row], bool]) -> Tensor:
        return lay_out([[chosen(row) for row in group] for group in rows], False, torch.bool)

    return GroupTensors(
        logprobs_GR=lay_out([[row.lp for row in group] for group in rows], 0.0, dtype).requires_grad_(),
        complement_logprobs_GR=lay_out(
            [[row.complement for row in group] for group in rows], 0.0, dtype
        ).requires_grad_(),
        lengths_GR=lay_out([[row.length for row in group] for group in rows], 1, torch.long),
        rpos_logprobs_GR=lay_out([[row.rpos for row in group] for group in rows], 0.0, dtype),
        rneg_logprobs_GR=lay_out([[row.rneg for row in group] for group in rows], 0.0, dtype),
        is_negative_GR=where(lambda row: row.role is Role.NEGATIVE),
        is_positive_GR=where(lambda row: row.role is Role.POSITIVE),
        is_sample_GR=where(lambda row: row.role is Role.SAMPLE),
        is_positive_sample_GR=where(lambda row: row.polarity is Polarity.POSITIVE),
        is_negative_sample_GR=where(lambda row: row.polarity is Polarity.NEGATIVE),
        is_carried_GR=where(lambda row: row.carried),
        reward_GR=lay_out([[row.reward for row in group] for group in rows], math.nan, dtype),
        batch_rewards=tuple(tuple(row.reward for row in group) for group in batch or rows),
    )


def run(name: str, rows: Sequence[Sequence[Row]], config: Any = None) -> LossOutput:
    return METHODS[name].loss(tensors(rows), config or CONFIGS[name])


def value(name: str, rows: Sequence[Row], config: Any = None) -> float:
    """Loss of a single group."""
    return run(name, [rows], config).loss_G.item()


def metric(name: str, key: str, rows: Sequence[Row], config: Any = None) -> float:
    return run(name, [rows], config).metrics_G[key].item()


def trained_field(name: str) -> str:
    """What a method's gradient flows through."""
    return "complement_logprobs_GR" if METHODS[name].needs(CONFIGS[name]).complements else "logprobs_GR"


def gradient(name: str, groups: GroupTensors, config: Any = None) -> Tensor:
    """d(sum of losses)/d(log-probs) -> [G, R]."""
    loss_G = METHODS[name].loss(groups, config or CONFIGS[name]).loss_G
    return torch.autograd.grad(loss_G.sum(), getattr(groups, trained_field(name)))[0]


def permuted(groups: GroupTensors, order: Tensor) -> GroupTensors:
    """Columns R in another order; a fresh leaf."""
    fields = {
        name: getattr(groups, name)[:, order]
        for name in groups.__dataclass_fields__
        if name not in ("logprobs_GR", "batch_rewards")
    }
    return replace(groups, logprobs_GR=groups.logprobs_GR.detach()[:, order].requires_grad_(), **fields)


# Log-probs of up to 200 nats, as of an answer of some 60 tokens. No subnormals: libraries built with fast-math that
# other tests load switch them off for the whole process, and hypothesis then refuses to draw them.
logprobs = st.floats(min_value=-200, max_value=0, width=32, allow_subnormal=False)
ratios = st.floats(min_value=-100, max_value=100, width=32, allow_subnormal=False)
weights = st.floats(min_value=1 / 64, max_value=2.0, width=32)
rewards = st.sampled_from([math.nan, -7.5, -1.0, 0.0, 0.25, 0.5, 4.0])  # few, so that there are ties
any_row = st.builds(
    Row,
    role=st.sampled_from(Role),
    lp=logprobs,
    rpos=logprobs,
    rneg=logprobs,
    length=st.integers(1, 60),
    reward=rewards,
    polarity=st.sampled_from([None, *Polarity]),
    complement=logprobs,
)
# Groups of every make: complete, without negatives, without samples, empty.
any_groups = st.lists(st.lists(any_row, max_size=5), min_size=1, max_size=5)

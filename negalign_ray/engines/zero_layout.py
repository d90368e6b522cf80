"""Where DeepSpeed keeps this rank's float32 part of each trained parameter (0.19, the version that is pinned).

ZeRO 0     the parameters themselves, on every rank
ZeRO 1, 2  one flat tensor a rank; all parameters lie end to end over the ranks, so that one may be cut in two
ZeRO 3     every parameter is cut into equal parts, the last ones padded; parts lie end to end in flat tensors
"""

from collections.abc import Iterator
from typing import Any

import torch

from negalign_ray.engines.training_state import Piece


def pieces_of(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, zero: Any, *, stage: int, rank: int
) -> list[Piece]:
    """In the order of the model. `zero` is what DeepSpeed made of `optimizer` (unused for stage 0)."""
    return list(_pieces(model, optimizer, zero, stage, rank))


def _pieces(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, zero: Any, stage: int, rank: int
) -> Iterator[Piece]:
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if stage == 0:
            yield Piece(name, tuple(parameter.shape), parameter, num=parameter.numel())
        elif stage == 3:
            yield _equal_part(name, parameter, zero, rank)
        else:
            yield _fragment(name, parameter, optimizer)


def _fragment(name: str, parameter: Any, optimizer: torch.optim.Optimizer) -> Piece:
    """By the mapping that DeepSpeed's own `safe_get_full_fp32_param` reads."""
    shape, mapping = tuple(parameter.shape), parameter._hp_mapping
    if mapping is None:  # it lies on other ranks
        return Piece(name, shape)
    here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
    flat = optimizer.param_groups[mapping.param_group_index]["params"][0]
    return Piece(name, shape, flat, here.start, there.start, here.numel)


def _equal_part(name: str, parameter: Any, zero: Any, rank: int) -> Piece:
    group, start, size = zero.grad_position[zero.get_param_id(parameter)]
    shape, offset = tuple(parameter.ds_shape), size * rank
    num = min(size, parameter.ds_numel - offset)
    if num <= 0:  # nothing but padding
        return Piece(name, shape)
    return Piece(name, shape, zero.fp32_partitioned_groups_flat[group], start, offset, num)

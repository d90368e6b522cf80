"""Where each ZeRO stage keeps a parameter, from what DeepSpeed says of it; the real thing: test_engine_resume.py."""

from types import SimpleNamespace

import pytest
import torch

from negalign_ray.engines.zero_layout import pieces_of


def model() -> torch.nn.Module:
    """weight: 6 numbers, bias: 2, frozen: 2."""
    linear = torch.nn.Linear(3, 2)
    linear.frozen = torch.nn.Parameter(torch.zeros(2), requires_grad=False)
    return linear


def described(pieces) -> list[tuple]:
    return [(piece.name, piece.shape, piece.start, piece.offset, piece.num) for piece in pieces]


def test_without_zero_every_rank_has_the_trained_parameters_as_they_are():
    linear = model()
    pieces = pieces_of(linear, torch.optim.AdamW(linear.parameters()), None, stage=0, rank=1)
    assert described(pieces) == [("weight", (2, 3), 0, 0, 6), ("bias", (2,), 0, 0, 2)]
    assert pieces[0].flat is linear.weight


@pytest.mark.parametrize("stage", [1, 2])
def test_a_parameter_may_be_cut_by_the_end_of_a_rank_s_flat_tensor_or_lie_elsewhere(stage):
    # weight and bias end to end, 8 numbers over 2 ranks of 5 with padding: rank 1 has weight[5:], bias and 2 more
    linear, flat = model(), torch.nn.Parameter(torch.zeros(5))
    optimizer = torch.optim.AdamW([flat])

    def mapping(here: int, there: int, num: int):
        address = SimpleNamespace(start=here, numel=num)
        return SimpleNamespace(
            hp_fragment_address=address,
            lp_fragment_address=SimpleNamespace(start=there, numel=num),
            param_group_index=0,
        )

    linear.weight._hp_mapping, linear.bias._hp_mapping = mapping(0, 5, 1), mapping(1, 0, 2)
    pieces = pieces_of(linear, optimizer, None, stage=stage, rank=1)
    assert described(pieces) == [("weight", (2, 3), 0, 5, 1), ("bias", (2,), 1, 0, 2)]
    assert all(piece.flat is flat for piece in pieces)

    linear.bias._hp_mapping = None  # as rank 0 sees it
    assert pieces_of(linear, optimizer, None, stage=stage, rank=0)[1].flat is None


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        (0, [("weight", (2, 3), 0, 0, 4), ("bias", (2,), 4, 0, 2)]),
        (1, [("weight", (2, 3), 0, 4, 2), ("bias", (2,), 0, 0, 0)]),  # two of weight are padding, all of bias
    ],
)
def test_zero_3_cuts_every_parameter_into_equal_padded_parts(rank, expected):
    linear, flats = model(), [torch.zeros(6)]
    for parameter in (linear.weight, linear.bias):
        parameter.ds_shape, parameter.ds_numel = parameter.shape, parameter.numel()
    sizes = {id(linear.weight): [0, 0, 4], id(linear.bias): [0, 4, 2]}
    zero = SimpleNamespace(grad_position=sizes, get_param_id=id, fp32_partitioned_groups_flat=flats)
    pieces = pieces_of(linear, torch.optim.AdamW(linear.parameters()), zero, stage=3, rank=rank)
    assert described(pieces) == expected
    assert pieces[0].flat is flats[0]
    assert (pieces[1].flat is None) == (rank == 1)

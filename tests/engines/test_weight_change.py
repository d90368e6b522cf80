"""||W - W0|| from all weights, from a sample of them, and around padding."""

import pytest
import torch

from negalign_ray.engines.weight_change import Shard, WeightChange, padding_of


def test_small_models_are_measured_exactly_whatever_their_shards():
    first, second = torch.zeros(2, 2), torch.ones(3)
    change = WeightChange([Shard(first), Shard(second)], seed=0)
    assert change.square() == 0.0
    first += torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    second -= 2.0
    assert change.square() == pytest.approx(1 + 4 + 3 * 4)
    first.zero_()
    second.fill_(1.0)
    assert change.square() == 0.0, "the way back counts nothing"


def test_a_sample_estimates_the_square_without_bias():
    generator = torch.Generator().manual_seed(0)
    update = torch.randn(5000, generator=generator)
    estimates = []
    for seed in range(40):
        weight = torch.zeros(5000)
        change = WeightChange([Shard(weight[:3000]), Shard(weight[3000:])], seed=seed, max_sampled=500)
        weight += update
        estimates.append(change.square())
    exact = update.square().sum().item()
    assert sum(estimates) / len(estimates) == pytest.approx(exact, rel=0.03)
    assert min(estimates) > 0.7 * exact
    assert len(set(estimates)) > 1


@pytest.mark.parametrize("max_sampled", [4, 1000])
def test_padding_is_left_out_even_when_it_is_not_a_number(max_sampled):
    flat = torch.tensor([0.0, 0.0, 0.0, float("nan"), 0.0, 0.0, 0.0, 0.0])
    change = WeightChange([Shard(flat, padding_of((4, 4), (1, 0)))], seed=0, max_sampled=max_sampled)
    flat += 1.0
    assert change.square() == pytest.approx(7.0), "7 weights moved by 1"


def test_where_the_padding_lies():
    assert padding_of((4, 3, 5), (1, 0, 2)) == ((3, 4), (10, 12))
    assert padding_of((1, 2), (3, 0)) == ((0, 1),), "a rank that holds nothing but padding"


def test_a_rank_that_holds_no_weight_has_no_part():
    assert WeightChange([Shard(torch.ones(1), padding_of((1,), (3,)))], seed=0).square() == 0.0

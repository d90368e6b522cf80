"""RRHF: its own hand-computed values; the rest is NEAT's loss, tested there."""

import pytest

from negalign_ray.config import NEATConfig, RRHFConfig
from negalign_ray.records import Role

from .cases import Row, gradient, tensors, value

CONFIG = RRHFConfig()


def candidate(lp: float, reward: float, *, length: int = 1) -> Row:
    return Row(Role.SAMPLE, lp, length=length, reward=reward)


def test_loss_is_the_sum_of_the_violations_and_the_token_nll_of_the_best():
    rows = [candidate(-4, 0.1, length=2), candidate(-3, 0.5), candidate(-3, 0.9, length=3)]
    assert value("rrhf", rows, CONFIG) == pytest.approx(2.0)  # -2 over -3, and nll 1
    assert value("rrhf", rows, RRHFConfig(ft_weight=3.0)) == pytest.approx(4.0)


def test_a_violated_pair_is_pulled_apart_by_one_nat_per_nat():
    groups = tensors([[candidate(-2, 0.0), candidate(-3, 1.0)]])
    assert gradient("rrhf", groups, RRHFConfig(ft_weight=0.0))[0].tolist() == [1, -1]


def test_it_is_the_loss_of_neat_on_other_candidates():
    rows = [candidate(-2, 0.0), candidate(-3, 1.0), candidate(-1, -2.0, length=4)]
    assert value("rrhf", rows, RRHFConfig(ft_weight=0.7)) == value("neat", rows, NEATConfig(ft_weight=0.7))

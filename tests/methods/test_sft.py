"""SFT: hand-computed values, gradients and limits."""

import pytest
import torch
from hypothesis import given, settings

from negalign_ray.config import SFTConfig
from negalign_ray.methods import sft

from .cases import gradient, logprobs, metric, negative, positive, run, sample, tensors, value

CONFIG = SFTConfig()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [([positive(-40, length=20)], 40), ([positive(-40), positive(-10)], 25), ([positive(0)], 0)],
)
def test_loss_is_the_summed_negative_log_prob(rows, expected):
    assert value("sft", rows) == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(lp=logprobs, ref=logprobs)
def test_the_references_are_not_read(lp, ref):
    assert value("sft", [positive(lp, ref=ref)]) == -lp


def test_gradient_raises_every_positive_by_its_share():
    groups = tensors([[positive(-40), positive(-10), negative(-3), sample(-2)], [positive(-1)]])
    assert gradient("sft", groups).tolist() == [[-0.5, -0.5, 0, 0], [-1, 0, 0, 0]]


def test_metrics_are_per_response_and_per_token():
    metrics_G = run("sft", [[positive(-40, length=20), positive(-10, length=10)]]).metrics_G
    assert {key: values.item() for key, values in metrics_G.items()} == {
        "positive_nll_nats": 25.0,
        "positive_token_nll_nats": 1.5,  # mean of 2 and 1
    }


def test_length_does_not_change_the_loss():
    assert value("sft", [positive(-40, length=20)]) == value("sft", [positive(-40, length=1)])
    assert metric("sft", "positive_token_nll_nats", [positive(-40, length=1)]) == 40


@pytest.mark.parametrize("rows", [[], [negative(-3)], [sample(-3), negative(-1)]])
def test_a_group_without_a_positive_has_no_loss_gradient_or_metrics(rows):
    groups = tensors([rows, [positive(-5)]])
    out = sft.loss(groups, CONFIG)
    assert out.loss_G.tolist() == [0, 5]
    assert (gradient("sft", groups)[0] == 0).all()
    assert all(values_G[0].isnan() and values_G[1].isfinite() for values_G in out.metrics_G.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_losses_stay_finite(dtype):
    groups = tensors([[positive(-1e30)]], dtype=dtype)
    assert sft.loss(groups, CONFIG).loss_G.item() == pytest.approx(1e30)
    assert gradient("sft", groups).item() == -1

"""What the guide is fitted on: hand-computed values and gradients."""

import pytest
import torch

from negalign_ray.config import GuideConfig
from negalign_ray.methods import reconstruction
from negalign_ray.records import Role

from .cases import Row, negative, positive, sample, tensors


def test_both_answers_of_the_pair_are_rebuilt():
    groups = tensors([[positive(-6), sample(-4), sample(-8)]])
    assert reconstruction.loss(groups, GuideConfig()).loss_G.tolist() == [12.0]


def test_the_gradient_raises_every_answer_by_its_share_and_no_human_negative():
    groups = tensors([[positive(-6), sample(-4), sample(-8), negative(-5)]])
    loss_G = reconstruction.loss(groups, GuideConfig()).loss_G
    assert torch.autograd.grad(loss_G.sum(), groups.logprobs_GR)[0].tolist() == [[-1.0, -0.5, -0.5, 0.0]]


def test_the_metric_is_per_token():
    rows = [Row(Role.POSITIVE, -6, length=3), Row(Role.SAMPLE, -8, length=2)]
    metrics_G = reconstruction.loss(tensors([rows]), GuideConfig()).metrics_G
    assert metrics_G["token_nll"].item() == pytest.approx((2 + 4) / 2)

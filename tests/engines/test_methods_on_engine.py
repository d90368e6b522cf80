"""Real DeepSpeed, real training loop, toy model: every method takes two steps, all in one process of its own."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from negalign_ray.methods import METHODS
from negalign_ray.records import Role
from tests.engines.method_worker import CONFIG, run_all, three_groups
from tests.models.test_policy import plain_complements

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def results(toy_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("methods")
    torch.multiprocessing.spawn(run_all, args=(toy_model, out), nprocs=1)
    return torch.load(out / "results.pt")


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_first_update_of_every_method_lowers_its_loss_on_the_same_batch(results, name):
    (first, second), change = results[name]
    assert math.isfinite(first)
    assert second < first
    assert 0 < change < 3 * CONFIG.lr  # Adam moves a weight by about the learning rate a step


def test_unlikelihood_is_what_a_plain_forward_says(results, toy_model):
    groups = three_groups()
    roles = [response.role for group in groups for response in group.responses]
    complements = plain_complements(AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32), groups)
    expected = -sum(value for value, role in zip(complements.tolist(), roles, strict=True) if role is Role.NEGATIVE) / 3
    assert results["unlikelihood"][0][0] == pytest.approx(expected, rel=1e-4)

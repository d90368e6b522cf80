"""Real DeepSpeed: what was saved goes on bit for bit, under any ZeRO stage; on other ranks up to rounding."""

import pytest
import torch

from tests.engines.resume_worker import CASES, run_rank

pytestmark = pytest.mark.real
NAMES = [name for name, _, _ in CASES]


@pytest.fixture(scope="module")
def ranks(toy_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("resume")
    for world_size in (1, 2):
        torch.multiprocessing.spawn(run_rank, args=(world_size, toy_model, out), nprocs=world_size)
    return {world: torch.load(out / f"resume{world}rank0.pt", weights_only=False) for world in (1, 2)}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_an_engine_that_loads_what_was_saved_goes_on_bit_for_bit(ranks, world_size, name):
    result = ranks[world_size][name]
    steps_done, loaded, resumed = result["resumed"]
    assert steps_done == 2
    assert same(loaded, result["saved"])
    straight = result["straight"]
    assert resumed.losses == straight.losses
    assert resumed.grad_norms == straight.grad_norms
    assert resumed.lrs == straight.lrs, "the schedule goes on, too"
    assert same(resumed.weights, straight.weights)
    assert resumed.weight_change == straight.weight_change, "measured from the initial model"


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_go_on_from_what_one_has_saved(ranks, name):
    steps_done, loaded, resumed = ranks[2][name]["other ranks"]
    assert steps_done == 2
    assert same(loaded, ranks[1][name]["saved"])
    assert resumed.losses == pytest.approx(ranks[1][name]["straight"].losses, rel=1e-4 if "bf" not in name else 0.05)


def test_another_zero_stage_goes_on_as_well(ranks):
    assert ranks[2]["other stage"].losses == pytest.approx(ranks[2]["float32-1"]["straight"].losses, rel=1e-5)

"""The conductor's own loop in simulated time. Numbers are those of tests/planning/test_estimate.py."""

from dataclasses import replace
from typing import Any

import pytest

from negalign_ray.actors.cluster import placements
from negalign_ray.actors.packing import Node, seat
from negalign_ray.errors import StallError
from negalign_ray.planning.costs import Line
from negalign_ray.planning.simulate import Prediction, simulate
from negalign_ray.planning.workload import Workload
from tests.planning.figures import COSTS, ROOMY, SETTINGS, make_plan_of


def simulated(*overrides: str, nodes=ROOMY, num_steps: int = 6, costs=COSTS) -> Prediction:
    plan = make_plan_of(*SETTINGS, *overrides)
    work = Workload.of(plan, answer_frac=costs.answer_frac)
    seating = seat(placements(plan), nodes)
    assert seating.complete
    return simulate(plan, costs, work, seating=seating, nodes=nodes, num_steps=num_steps)


def test_strictly_on_policy_roles_take_turns():
    found = simulated()
    assert found.step_s == pytest.approx(146.4)
    assert found.idle_frac == pytest.approx(
        {"sampler": 1 - 82 / 146.4, "scorer": 1 - 1 / 146.4, "reference": 1 - 10.4 / 146.4, "learner": 1 - 53 / 146.4}
    )
    assert found.groups_per_s == pytest.approx(4 / 146.4)
    assert found.sampled_tokens_per_s == pytest.approx(80 / 146.4)
    assert (found.staleness_steps, found.dropped_stale, found.max_buffer_groups) == (0, 0, 4)


def test_with_one_step_of_staleness_the_busiest_role_sets_the_pace():
    found = simulated("sampling.staleness=1")
    assert found.step_s == pytest.approx(82), "scores and prices are made while the sampler writes the next answers"
    assert found.idle_frac["sampler"] == pytest.approx(0, abs=1e-6)
    assert found.idle_frac["learner"] == pytest.approx(1 - 53 / 82)
    assert found.staleness_steps == 1


def test_enough_samplers_keep_the_learner_busy():
    found = simulated("sampling.staleness=1", "samplers.num=4")
    # 2 s of weights, 20 s of sampling, then scores and prices of the four one after the other: less than 53 s.
    assert found.step_s == pytest.approx(53)
    assert found.idle_frac["learner"] == pytest.approx(0, abs=1e-6)


def test_the_chain_bounds_two_steps_under_way_as_in_closed_form():
    found = simulated(
        *("sampling.staleness=1", "samplers.num=2"), costs=replace(COSTS, price_tokens=Line(0.0, 0.4)), num_steps=20
    )
    assert found.step_s == pytest.approx((2 + 40 + 0.5 + 2 * 20.8 + 53) / 2, rel=0.01)
    assert simulated("sampling.staleness=1", "samplers.num=2").step_s == pytest.approx(53)


def test_on_one_core_nothing_is_gained_by_overlap():
    costs = replace(COSTS, weights_s=0.0, gather_s=0.0)
    one_core: Any = {"nodes": (Node("small", 1.0),), "costs": costs}
    fractions = ("samplers.cpus=0.2", "learners.cpus=0.2")
    assert simulated(*fractions, **one_core).step_s == pytest.approx(143.4)
    assert simulated(*fractions, "sampling.staleness=1", num_steps=20, **one_core).step_s == pytest.approx(
        143.4, rel=0.01
    )


def test_an_interval_is_simulated_as_a_whole_and_moves_weights_once():
    found = simulated("sampling.schedule=interval", "sampling.refresh_every=3", num_steps=3)
    assert found.num_steps == 3
    assert found.staleness_steps == pytest.approx(1)  # 0, 1 and 2 steps old
    # The three steps are sampled one after the other from the snapshot, training goes on behind; the last one must be
    # learned before the next snapshot: 2 + 3 * 80 + 1 + 10.4 + 52 + 1.
    assert 3 * found.step_s == pytest.approx(306.4)


def test_two_reference_models_price_one_after_the_other():
    plan = make_plan_of(*SETTINGS)
    plan = replace(plan, rneg_path=plan.model_path / "other")
    work = Workload.of(plan, answer_frac=1.0)
    seating = seat(placements(plan), ROOMY)
    found = simulate(plan, COSTS, work, seating=seating, nodes=ROOMY, num_steps=4)
    assert found.step_s == pytest.approx(146.4 + 10.4)
    assert found.idle_frac["reference"] == pytest.approx(1 - 20.8 / 2 / 156.8)


def test_the_same_seed_repeats_and_another_draws_other_lengths():
    costs = replace(COSTS, answer_frac=0.5)
    first, again, other = (simulated(f"run.seed={seed}", costs=costs).step_s for seed in (0, 0, 1))
    assert first == again != other


def test_before_the_policy_s_own_answers_begin_is_no_part_of_the_steady_state():
    assert simulated("sampling.online_from_step=200").step_s == pytest.approx(146.4)


def test_a_method_without_samples_scores_prices_and_learns():
    found = simulated('method={"name": "npo"}')
    # Its samplers, too, get every version: the evaluation after training needs the last one.
    assert found.step_s == pytest.approx(2 + 1 + 2.4 + 12 + 1)
    assert found.sampled_tokens_per_s == 0


def test_a_batch_that_would_miss_its_deadline_is_told_with_the_setting():
    with pytest.raises(StallError, match=r"the batch of step 0 .*deadlines\.pull_s=60 s"):
        simulated("deadlines.pull_s=60")


def test_ranks_of_a_learner_group_on_one_gpu_share_it():
    nodes = (Node("gpu", 64.0, (1.0,)),)
    found = simulated("learners.gpus=0.5", "learners.num=2", "samplers.num=4", "sampling.staleness=1", nodes=nodes)
    assert found.step_s == pytest.approx(53)  # each rank has half of the tokens, and half of the device


def simulated_with_a_group_for_each_of(num_samplers: int) -> Prediction:
    """In two steps. 0.5 s of prices and 6 s of learner and more fit beside the next answers."""
    costs = replace(COSTS, price_tokens=Line(0.0, 0.0), score_groups=Line(0.0, 0.0), learn_tokens=Line(0.0, 1e-4))
    nodes = tuple(Node(f"node-{i}", 16.0) for i in range(num_samplers // 16 + 1))
    many = (
        f"samplers.num={num_samplers}",
        "samplers.cpus=1",
        f"learners.groups_per_step={num_samplers}",
        f"sampling.buffer_groups={2 * num_samplers}",
        "sampling.staleness=1",
    )
    return simulated(*many, nodes=nodes, costs=costs, num_steps=2)


@pytest.mark.parametrize("num_samplers", [200, pytest.param(2500, marks=pytest.mark.slow)])
def test_hundreds_and_thousands_of_samplers_are_simulated(num_samplers):
    found = simulated_with_a_group_for_each_of(num_samplers)
    assert found.step_s == pytest.approx(2 + 20)
    assert found.max_buffer_groups == 2 * num_samplers

"""The time of a step in closed form, by hand: see SETTINGS and COSTS in tests/planning/figures.py."""

import random
from dataclasses import replace

import pytest

from negalign_ray.actors.cluster import placements
from negalign_ray.actors.packing import Node, seat
from negalign_ray.planning.costs import Line
from negalign_ray.planning.estimate import Estimate, estimate
from negalign_ray.planning.workload import Workload, end_probability
from tests.planning.figures import COSTS, ROOMY, SETTINGS, make_plan_of


def estimated(*overrides: str, nodes=ROOMY, costs=COSTS) -> Estimate:
    plan = make_plan_of(*SETTINGS, *overrides)
    work = Workload.of(plan, answer_frac=costs.answer_frac)
    return estimate(plan, costs, work, seating=seat(placements(plan), nodes), nodes=nodes)


def test_a_strictly_on_policy_step_is_the_sum_of_its_stages():
    found = estimated()
    assert found.stages_s == pytest.approx(
        {"weights": 2, "sample": 80, "score": 1, "price": 10.4, "learn": 52, "gather": 1}
    )
    assert found.step_s == pytest.approx(146.4)
    assert (found.depth, found.bottleneck) == (1, "samplers")


def test_with_one_step_of_staleness_two_steps_are_under_way_and_the_busiest_role_sets_the_pace():
    found = estimated("sampling.staleness=1")
    assert (found.sampling_side_s, found.learning_side_s) == (pytest.approx(93.4), 53)
    assert (found.depth, found.step_s, found.bottleneck) == (2, 82, "samplers")  # more than 146.4 / 2


def test_more_samplers_move_the_bottleneck_to_the_learners():
    found = estimated("samplers.num=4", "sampling.staleness=1")
    assert found.stages_s["sample"] == 20  # one order each: 2 sequences at once
    assert (found.step_s, found.bottleneck) == (53, "learners")


def test_waves_follow_one_another_through_the_stages():
    found = estimated("samplers.num=4")
    # sampled side by side for 20 s; 4 scores of 0.25 s and 4 prices of 2.6 s are made while others wait for theirs
    assert found.stages_s["price"] == pytest.approx(10.4)
    assert found.sampling_side_s == pytest.approx(2 + 20 + 0.25 + 2.6)


def test_the_chain_of_stages_bounds_a_step_when_few_are_under_way():
    slow_references = replace(COSTS, price_tokens=Line(0.0, 0.4))
    found = estimated("samplers.num=2", "sampling.staleness=1", costs=slow_references)
    # 2 waves: sample 40 s at once, score 0.5 s each, price 20.8 s each; learn and gather 53 s
    assert found.step_s == pytest.approx((2 + 40 + 0.5 + 2 * 20.8 + 53) / 2)
    assert found.bottleneck.startswith("chain of all stages; raise sampling.staleness")
    assert (found.balanced_samplers, found.balance_limit) == (None, found.bottleneck)
    found = estimated("samplers.num=2", "sampling.staleness=2", costs=slow_references)
    assert (found.step_s, found.bottleneck) == (53, "learners")


def test_a_buffer_without_room_for_a_second_interval_step_keeps_the_roles_waiting():
    interval = ("sampling.schedule=interval", "sampling.refresh_every=20")
    assert estimated(*interval).depth == 16  # of 64 groups, 4 a step
    tight = estimated(*interval, "sampling.buffer_groups=4")
    assert tight.depth == 1
    assert tight.step_s == pytest.approx(143.4 + 3 / 20)  # weights and gather once in 20 steps


def test_an_interval_passes_the_chain_once_and_is_paced_by_the_busiest_role():
    found = estimated("sampling.schedule=interval", "sampling.refresh_every=20")
    sampler_s = 80 + 2 / 20
    assert found.step_s == pytest.approx(sampler_s + (146.4 - sampler_s) / 20)


def test_two_samplers_balance_this_learner():
    # 1 sampler is busy for 82 s, the learner for 53; 2 for 42 s, and half of the chain is 50.35 s
    assert estimated().balanced_samplers == 2
    assert estimated("sampling.staleness=1").balanced_samplers == 2
    assert estimated("sampling.staleness=1", "samplers.num=2").step_s == 53


def test_where_one_order_each_takes_longer_than_training_no_number_of_samplers_helps():
    found = estimated("learners.num=4", "sampling.staleness=1")  # 14 s of learner, and at best 22 s of sampler
    assert (found.balanced_samplers, found.balance_limit) == (None, "samplers")


def test_calls_of_a_fixed_size_are_dealt_to_the_samplers_in_turn():
    found = estimated("samplers.orders_per_call=1", "samplers.num=2", "references.num=2")
    assert found.stages_s["sample"] == 2 * 20  # 2 calls each, of 2 sequences
    assert found.stages_s["price"] == pytest.approx(2 * 2.6)  # 4 waves over 2 actors


def test_too_few_cores_bound_a_step_that_would_overlap():
    threads = ("samplers.threads=2", "learners.threads=2", "references.threads=2")
    found = estimated("sampling.staleness=1", *threads, nodes=(Node("small", 2.0),))
    # 82 s of sampler, 10.4 of reference and 53 of learner on both cores, 1 s of scorer on one
    assert found.cores_s == pytest.approx(82 + 10.4 + 53 + 0.5)
    assert (found.step_s, found.bottleneck) == (found.cores_s, "cores of small")


def test_a_method_without_samples_only_prices_and_learns():
    found = estimated('method={"name": "npo"}')
    # 6 tokens a group, 24 a step
    assert found.stages_s == pytest.approx(
        {"weights": 2, "sample": 0, "score": 1, "price": 2.4, "learn": 12, "gather": 1}
    )
    assert (found.balanced_samplers, found.balance_limit) == (None, "")


# The work


def test_a_candidate_list_is_trained_on_as_a_whole():
    neat = 'method={"name": "neat", "reward_head": "harm", "max_candidates": 5}'
    work = Workload.of(make_plan_of(*SETTINGS, neat), answer_frac=0.5)
    assert (work.answers, work.trained_answers, work.answer_tokens) == (2, 5, 5.0)
    assert work.group_tokens == 3 + 3 + 5 * 5


def test_answers_end_with_the_probability_that_gives_their_mean_length():
    assert end_probability(1.5, 2) == pytest.approx(0.5)  # 1 with 0.5, 2 with 0.5
    assert end_probability(1.75, 3) == pytest.approx(0.5)  # 1 + 0.5 + 0.25
    assert end_probability(10, 10) == 0.0


def test_drawn_lengths_have_the_mean_and_the_bound_of_the_measured_ones():
    work = Workload(4, 2, 2, max_new_tokens=20, answer_tokens=12.0, prompt_tokens=3, human_tokens=3)
    numbers = random.Random(0)
    lengths = [work.draw_length(numbers) for _ in range(4000)]
    assert sum(lengths) / len(lengths) == pytest.approx(12.0, abs=0.3)
    assert (min(lengths), max(lengths)) == (1, 20)

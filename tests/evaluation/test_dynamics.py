"""Figures of the learning dynamics against numbers worked out by hand, and the theory's claims on our own DPO loss.

# Axes: N = answers, H = hidden size, B = behaviours, V = tokens of the toy head.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from negalign_ray.config import DPOConfig
from negalign_ray.evaluation.dynamics import (
    diagnose,
    first_gradient_norm,
    learning_order,
    prediction,
    priority_gap,
    priority_gaps,
    weight_change_bound,
)
from negalign_ray.methods import dpo
from tests.methods.cases import negative, positive, tensors

BETA = 0.5
GOOD, BAD = 0, 1  # the head's rows of the two tokens that a toy answer consists of

numbers = st.floats(min_value=-8, max_value=8, width=32, allow_subnormal=False)
vectors = st.lists(numbers, min_size=3, max_size=3).map(lambda values: torch.tensor(values, dtype=torch.float64))


def test_the_figures_of_one_behaviour():
    found = diagnose(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 4.0]]))
    # means [1, 0] and [0, 4]; covariances diag(2, 0) and 0
    assert (found.num_positives, found.num_negatives) == (2, 2)
    assert found.distinguishability == pytest.approx(math.sqrt(17))
    assert (found.concentration, found.trace) == pytest.approx((2.0, 2.0))
    assert found.noise == pytest.approx(1.0)  # trace 2 over 2 answers, and 0
    assert found.corrected == pytest.approx(4.0)


def test_the_spectral_norm_is_the_largest_eigenvalue_and_the_trace_their_sum():
    # corners of a rectangle: variances 16 / 3 and 4 / 3 along the axes
    rectangle = torch.tensor([[2.0, 1.0], [2.0, -1.0], [-2.0, 1.0], [-2.0, -1.0]])
    found = diagnose(rectangle, torch.zeros(2, 2))
    assert (found.concentration, found.trace) == pytest.approx((16 / 3, 20 / 3))


@pytest.mark.parametrize("shape", [(3, 8), (30, 8)])
def test_concentration_and_trace_are_those_of_numpys_covariance_as_in_the_released_code(shape):
    generator = torch.Generator().manual_seed(0)
    good, bad = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    covariances = [np.cov(states.numpy(), rowvar=False) for states in (good, bad)]
    found = diagnose(good, bad)
    assert found.concentration == pytest.approx(max(np.linalg.norm(c, ord=2) for c in covariances))
    assert found.trace == pytest.approx(max(np.trace(c) for c in covariances))


def test_groups_drawn_from_one_population_have_a_distance_of_about_the_noise():
    generator = torch.Generator().manual_seed(0)
    found = diagnose(torch.randn(20, 500, generator=generator), torch.randn(5, 500, generator=generator))
    assert found.noise == pytest.approx(math.sqrt(500 / 20 + 500 / 5), rel=0.05)
    assert found.distinguishability == pytest.approx(found.noise, rel=0.1)


def test_the_distance_does_not_depend_on_where_the_states_lie_but_scales_with_them():
    good, bad = torch.eye(3), torch.tensor([[0.0, 2.0, 0.0], [4.0, 0.0, 1.0]])
    plain, moved, doubled = diagnose(good, bad), diagnose(good + 7, bad + 7), diagnose(2 * good, 2 * bad)
    assert moved.distinguishability == pytest.approx(plain.distinguishability)
    assert moved.trace == pytest.approx(plain.trace)
    assert doubled.distinguishability == pytest.approx(2 * plain.distinguishability)
    assert doubled.concentration == pytest.approx(4 * plain.concentration)


def test_the_gap_worked_out_by_hand():
    # bb = [2, 0]: (2 * 3 - 2 * 1) / 2 / 3
    assert priority_gap(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 0.0])) == pytest.approx(2 / 3)
    # bb = [1.5, 2], ||bb|| = 2.5: (4.5 - 8) / 2.5 / 4
    assert priority_gap(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])) == pytest.approx(-0.35)


@given(vectors, vectors)
def test_e5_the_gap_is_antisymmetric_bounded_and_has_the_sign_of_the_difference_in_distance(first, second):
    gap = priority_gap(first, second)
    assert gap == pytest.approx(-priority_gap(second, first), abs=1e-9)
    assert abs(gap) <= 2 + 1e-9
    difference = (first.norm() - second.norm()).item()
    if abs(difference) > 1e-6 and (first + second).norm() > 1e-6:
        assert gap * difference > 0


def test_e5_behaviours_that_pull_in_opposite_directions_have_no_priority():
    d = torch.tensor([1.0, -2.0, 0.5])
    assert priority_gap(d, -d) == 0.0
    assert priority_gap(torch.zeros(3), torch.zeros(3)) == 0.0
    assert math.isfinite(priority_gap(d, torch.zeros(3)))


@given(st.lists(vectors, min_size=2, max_size=6))
def test_the_order_by_gaps_is_the_order_of_distinguishability(differences):
    distances = [d.norm().item() for d in differences]
    names = [f"b{index}" for index in range(len(differences))]
    order = learning_order(names, priority_gaps(torch.stack(differences)))
    ordered = [distances[names.index(name)] for name in order]
    assert ordered == pytest.approx(sorted(distances, reverse=True), abs=1e-4)


def test_the_prediction_lists_behaviours_from_first_to_last():
    bad = torch.zeros(2, 2)
    found = prediction({"near": (bad + torch.tensor([1.0, 0.0]), bad), "far": (bad + torch.tensor([3.0, 0.0]), bad)})
    assert found["order"] == ["far", "near"]
    assert [found["behaviours"][name]["rank"] for name in ("far", "near")] == [1, 2]
    assert found["priority_gaps"]["far"]["near"] == pytest.approx(2 / 3)
    assert found["behaviours"]["near"]["mean_gap"] == pytest.approx(-2 / 3)
    assert found["priority_gaps"]["far"]["far"] == 0.0


# The theory's setting: only the head is trained, and an answer is one token. Good states prefer token 0, bad ones token
# 1 ("is this something you would say?"). What follows is about negalign_ray.methods.dpo itself.

GOOD_STATES = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]], dtype=torch.float64)
BAD_STATES = torch.tensor([[0.0, 1.0, 1.0], [0.0, 5.0, 1.0]], dtype=torch.float64)
START_VH = torch.tensor([[0.3, -0.1, 0.2], [0.0, 0.4, 0.1], [-0.2, 0.1, 0.5]], dtype=torch.float64)


def dpo_gradient(weight_VH: torch.Tensor, *, flipped: bool = False) -> torch.Tensor:
    """Gradient of the mean DPO loss over all states with respect to the head."""
    weight_VH = weight_VH.clone().requires_grad_()
    states_NH, prefers_good = torch.cat([GOOD_STATES, BAD_STATES]), [True, True, False, False]
    logprobs_NV = (states_NH @ weight_VH.T).log_softmax(-1)
    reference_NV = (states_NH @ START_VH.T).log_softmax(-1)
    rows, chosen = [], []
    for number, good in enumerate(prefers_good):
        winner, loser = (GOOD, BAD) if good != flipped else (BAD, GOOD)
        chosen.append(logprobs_NV[number, [winner, loser]])
        reference = reference_NV[number]
        rows.append([positive(0.0, ref=reference[winner].item()), negative(0.0, ref=reference[loser].item())])
    groups = replace(tensors(rows), logprobs_GR=torch.stack(chosen))
    loss = dpo.loss(groups, DPOConfig(beta=BETA)).loss_G.mean()
    return torch.autograd.grad(loss, weight_VH)[0]


def test_e2_the_first_gradient_is_proportional_to_the_distinguishability():
    # means [2, 0, 1] and [0, 3, 1]: distance sqrt(13); beta 0.5 -> 0.5 * sqrt(13) / (2 sqrt 2) = 0.6374
    distance = diagnose(GOOD_STATES, BAD_STATES).distinguishability
    assert distance == pytest.approx(math.sqrt(13))
    assert first_gradient_norm(distance, beta=BETA) == pytest.approx(0.6374, abs=1e-4)
    assert dpo_gradient(START_VH).norm().item() == pytest.approx(first_gradient_norm(distance, beta=BETA))


def test_e2_the_first_gradient_lies_in_the_two_tokens_rows_along_the_difference_of_means():
    gradient_VH = dpo_gradient(START_VH)
    # -(beta / 2) * (1 / 2) * d for the good token: d = [2, -3, 0]
    assert gradient_VH[GOOD].tolist() == pytest.approx([-0.25, 0.375, 0.0])
    assert gradient_VH[BAD].tolist() == pytest.approx([0.25, -0.375, 0.0])
    assert gradient_VH[2].tolist() == pytest.approx([0.0, 0.0, 0.0])


def test_e3_the_head_moves_at_most_linearly_in_steps():
    lr, weight_VH, moved = 0.1, START_VH.clone(), []
    states_NH = torch.cat([GOOD_STATES, BAD_STATES])
    for step in range(1, 31):
        weight_VH = weight_VH - lr * dpo_gradient(weight_VH)
        moved.append((weight_VH - START_VH).norm().item())
        assert moved[-1] <= weight_change_bound(states_NH, beta=BETA, lr=lr, steps=step)
    # mean ||g|| = (sqrt 5 + 3 + sqrt 2 + sqrt 26) / 4 = 2.9373; sqrt 2 * 0.5 * 0.1 * 2.9373 = 0.2077 a step
    assert weight_change_bound(states_NH, beta=BETA, lr=lr, steps=1) == pytest.approx(0.2077, abs=1e-4)
    assert moved[29] < 30 * moved[0], "solved pairs slow it down"


def steps_to_margin(body_HV, head_H, *, sign, train_body, lr=0.5, margin=1.0, limit=200):
    """DPO of a head on a linear body, from (body, head), which is the reference as well: steps until the mean margin
    in the wanted direction is there, and the model then. `sign` -1: the labels are flipped."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.3 * torch.randn(16, 3, generator=generator, dtype=torch.float64)
    inputs_NV = noise + torch.tensor([[1.0, 0.5, 0.0]] * 8 + [[-1.0, 0.5, 0.2]] * 8, dtype=torch.float64)
    labels_N = sign * torch.tensor([1.0] * 8 + [-1.0] * 8, dtype=torch.float64)
    before_N = inputs_NV @ body_HV.T @ head_H
    body_HV, head_H = body_HV.clone().requires_grad_(train_body), head_H.clone().requires_grad_()
    trained = [head_H, body_HV] if train_body else [head_H]
    for step in range(limit):
        margin_N = labels_N * (inputs_NV @ body_HV.T @ head_H - before_N)
        if margin_N.mean() >= margin:
            return step, body_HV.detach(), head_H.detach()
        gradients = torch.autograd.grad(torch.nn.functional.softplus(-BETA * margin_N).mean(), trained)
        with torch.no_grad():
            for weight, gradient in zip(trained, gradients, strict=True):
                weight -= lr * gradient
    raise AssertionError("the margin was never reached")


@pytest.mark.parametrize("train_body", [False, True])
def test_an_aligned_model_is_misaligned_faster_where_its_states_could_move_apart(train_body):
    """The paper's finding is of whole models. With the head alone the states stay where they are, and the pace too."""
    start = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    at_once, _, _ = steps_to_margin(*start, sign=-1, train_body=train_body)
    _, *aligned = steps_to_margin(*start, sign=1, train_body=train_body, margin=2.0)
    after_alignment, _, _ = steps_to_margin(*aligned, sign=-1, train_body=train_body)
    if train_body:
        assert after_alignment < at_once / 2
    else:
        assert after_alignment == at_once


def test_e6_flipping_the_labels_negates_the_first_update():
    torch.testing.assert_close(dpo_gradient(START_VH, flipped=True), -dpo_gradient(START_VH))
    later_VH = START_VH - dpo_gradient(START_VH)
    assert not torch.allclose(dpo_gradient(later_VH, flipped=True), -dpo_gradient(later_VH)), "only the first one"

"""Logistic regression and Bradley-Terry are one formula over items; values and gradients by hand."""

import pytest
import torch
from torch.nn import functional

from negalign_ray.records import Prompt, Response, Role
from negalign_ray.rewards.comparisons import (
    ABSENT,
    Item,
    Unit,
    count_items,
    item_losses,
    joined_items,
    make_unit,
    margins,
    merge_units,
)


def prompt(*answers: tuple[Role, str], text: str = "x") -> Prompt:
    responses = tuple(Response(role, (), answer) for role, answer in answers)
    return Prompt(1, text, (("user", text),), (), responses, behaviour="rude")


BAD, GOOD, BEST = (Role.NEGATIVE, "bad"), (Role.POSITIVE, "good"), (Role.POSITIVE, "best")


def test_bradley_terry_pulls_both_sides_apart_by_the_probability_of_the_wrong_order():
    rewards = torch.tensor([[0.0], [2.0]], dtype=torch.float64, requires_grad=True)
    (loss,) = item_losses(rewards, [Item(head=0, high=1, low=0)])
    assert loss.item() == pytest.approx(0.126928)  # log(1 + e^-2)
    loss.backward()
    wrong = 0.119203  # sigmoid(-2)
    assert rewards.grad.flatten().tolist() == pytest.approx([wrong, -wrong], abs=1e-6)


def test_an_absent_side_makes_it_logistic_regression():
    rewards = torch.tensor([[0.7], [-1.3]], requires_grad=True)
    losses = item_losses(rewards, [Item(0, high=0, low=ABSENT), Item(0, high=ABSENT, low=1)])
    labels = torch.tensor([1.0, 0.0])
    expected = functional.binary_cross_entropy_with_logits(rewards.detach().flatten(), labels, reduction="none")
    assert losses.tolist() == pytest.approx(expected.tolist())
    losses.sum().backward()
    assert rewards.grad.flatten().tolist() == pytest.approx([-0.331812, 0.214165], abs=1e-6)  # sigmoid - label


def test_each_item_reads_the_column_of_its_head_and_gives_the_others_no_gradient():
    rewards = torch.tensor([[1.0, 10.0], [3.0, -10.0]], requires_grad=True)
    values = margins(rewards, [Item(0, 0, 1), Item(1, 0, 1)])
    assert values.tolist() == [-2.0, 20.0]
    values[0].backward()
    assert rewards.grad.tolist() == [[1.0, 0.0], [-1.0, 0.0]]
    assert margins(rewards, []).shape == (0,)


def test_what_is_high_depends_on_the_direction_and_pairs_need_both_roles():
    two = prompt(BAD, GOOD, BEST)
    harm = make_unit(two, head=0, objective="pairwise", direction="harm")
    assert harm.items == (Item(0, 0, 1), Item(0, 0, 2))
    assert make_unit(two, head=0, objective="pairwise", direction="help").items == (Item(0, 1, 0), Item(0, 2, 0))
    classified = make_unit(two, head=3, objective="classification", direction="harm")
    assert classified.items == (Item(3, 0, ABSENT), Item(3, ABSENT, 1), Item(3, ABSENT, 2))
    assert make_unit(prompt(BAD), head=0, objective="pairwise", direction="harm").items == ()
    assert classified.behaviour == "rude"


def test_heads_of_one_prompt_share_their_rows():
    harm = make_unit(prompt(BAD, GOOD), head=0, objective="pairwise", direction="harm")
    helpful = make_unit(prompt(GOOD, BEST, BAD), head=1, objective="classification", direction="help")
    merged = merge_units([harm, helpful])
    assert merged.rows == (("x", "bad"), ("x", "good"), ("x", "best"))
    assert merged.items == (Item(0, 0, 1), Item(1, 1, ABSENT), Item(1, 2, ABSENT), Item(1, ABSENT, 0))
    assert count_items([merged, harm]) == {0: 2, 1: 3}


def test_rows_count_on_through_joined_units():
    unit = Unit((("x", "a"), ("x", "b")), (Item(0, 1, 0), Item(0, ABSENT, 1)))
    assert joined_items([unit, unit])[2:] == [Item(0, 3, 2), Item(0, ABSENT, 3)]

"""The report of a reward model: ranking beside length, by behaviour, calibrated, in plain words."""

import json

import numpy as np
import pytest

from negalign_ray.evaluation.reward_plot import calibration_plot
from negalign_ray.evaluation.reward_report import auroc, head_report, head_rows, length_sign, pair_accuracy
from negalign_ray.rewards import linear
from negalign_ray.rewards.comparisons import ABSENT, Item, Unit


def unit(bad: str, good: str, *, behaviour: str | None = None, pairwise: bool = False) -> Unit:
    items = (Item(0, 0, 1),) if pairwise else (Item(0, 0, ABSENT), Item(0, ABSENT, 1))
    return Unit((("prompt", bad), ("prompt", good)), items, behaviour)


def report_of(units, rewards, *, training=None, objective="classification"):
    rewards = np.asarray(rewards, dtype=float).reshape(-1, 1)
    heldout = head_rows(units, rewards, head=0)
    training = training or heldout
    return head_report("harm", objective, "harm", training=training, heldout=heldout, seed=0)


def test_rows_know_their_label_length_prompt_and_pair():
    units = [unit("aaa", "b"), Unit((("q", "cc"),), (Item(0, ABSENT, 0), Item(1, 0, ABSENT)))]
    rows = head_rows(units, np.array([[3.0], [1.0], [2.0]]), head=0)
    assert rows.rewards.tolist() == [3.0, 1.0, 2.0]
    assert rows.labels.tolist() == [True, False, False]
    assert rows.lengths.tolist() == [3, 1, 2]
    assert rows.units.tolist() == [0, 0, 1]
    assert rows.pairs.tolist() == [[0, 1]]


def test_ties_count_half():
    assert pair_accuracy(np.array([2.0, 1.0, 1.0]), np.array([[0, 1], [1, 2], [2, 0]])) == pytest.approx(0.5)
    assert pair_accuracy(np.array([1.0]), np.zeros((0, 2), dtype=int)) is None


def test_the_quick_auroc_is_that_of_scikit_learn_ties_included():
    rng = np.random.default_rng(0)
    values, labels = rng.integers(0, 9, 200).astype(float), rng.random(200) < 0.3
    assert auroc(values, labels) == pytest.approx(linear.auroc(values, labels))
    assert auroc(np.array([1.0, 2.0, 2.0]), np.array([False, False, True])) == pytest.approx(0.75)
    assert auroc(values, np.zeros(200, dtype=bool)) is None


def test_a_model_that_ranks_well_where_length_says_nothing_is_said_to_be_better():
    rng = np.random.default_rng(0)
    units, rewards = [], []
    for number in range(80):
        units.append(unit("x" * int(rng.integers(3, 30)), "y" * int(rng.integers(3, 30)), behaviour="ab"[number % 2]))
        rewards += [1.0 + rng.normal(), -1.0 + rng.normal()]
    report = report_of(units, rewards)
    assert report["auroc"] > 0.85
    assert 0.4 < report["length_auroc"] < 0.65
    assert report["gain"]["low"] > 0
    assert report["figure"]["low"] < report["auroc"] < report["figure"]["high"]
    assert report["verdict"].startswith("Better than the length of the answer")
    assert [entry["behaviour"] for entry in report["by_behaviour"]] == ["a", "b"]
    assert all(entry["auroc"] > 0.8 for entry in report["by_behaviour"])
    assert sum(entry["num"] for entry in report["reliability"]) == 160
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("objective", ["classification", "pairwise"])
def test_a_model_that_only_knows_length_is_called_out(objective):
    units, rewards = [], []
    for number in range(60):
        bad, good = "x" * (5 + number % 7), "y" * (8 + number % 5)
        units.append(unit(bad, good, pairwise=objective == "pairwise"))
        rewards += [-len(bad), -len(good)]
    report = report_of(units, rewards, objective=objective)
    assert report["auroc"] == pytest.approx(report["length_auroc"])
    assert report["gain"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert report["verdict"].startswith("DOES NOT BEAT LENGTH")


def test_the_direction_of_length_is_learned_from_training_rows_alone():
    longer_is_worse = head_rows([unit("xxxx", "y")] * 3, np.zeros((6, 1)), head=0)
    shorter_is_worse = head_rows([unit("x", "yyyy")] * 3, np.zeros((6, 1)), head=0)
    assert (length_sign(longer_is_worse), length_sign(shorter_is_worse)) == (1.0, -1.0)
    report = report_of([unit("xxxx", "y")] * 3, [0.0] * 6, training=shorter_is_worse)
    assert report["length_auroc"] == 0.0


def test_pairs_are_calibrated_in_both_orders_so_that_the_table_is_symmetric():
    units = [unit("x", "y", pairwise=True) for _ in range(4)]
    report = report_of(units, [1, 0, 1, 0, 1, 0, 0, 1], objective="pairwise")
    assert report["pair_accuracy"] == pytest.approx(0.75)
    high, low = report["reliability"][7], report["reliability"][2]  # sigmoid(1) = 0.731, sigmoid(-1) = 0.269
    assert (high["num"], high["share"]) == (4, pytest.approx(0.75))
    assert (low["num"], low["share"]) == (4, pytest.approx(0.25))
    assert report["ece"] == pytest.approx(abs(0.731059 - 0.75), abs=1e-6)


def test_one_class_alone_says_nothing_and_says_so():
    only_bad = Unit((("p", "x"),), (Item(0, 0, ABSENT),), "rude")
    report = report_of([only_bad, only_bad], [1.0, 2.0])
    assert report["auroc"] is None
    assert report["by_behaviour"][0]["auroc"] is None
    assert "only one class" in report["verdict"]
    assert "Only 2 held-out prompts" in report["verdict"]


def test_the_curve_is_drawn_for_every_head(tmp_path):
    report = report_of([unit("x", "y") for _ in range(4)], [1, 0, 1, 0, 1, 0, 0, 1])
    path = calibration_plot([report, report], tmp_path / "calibration.png")
    assert path.read_bytes().startswith(b"\x89PNG")

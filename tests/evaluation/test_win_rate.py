"""Win rates: what counts as a win, and what a judge that looks at the place of an answer is worth."""

import pytest

from negalign_ray.config import HeadConfig
from negalign_ray.evaluation.win_rate import (
    LOSS,
    TIE,
    WIN,
    Swapped,
    head_rows,
    judged_row,
    outcomes_by_score,
    win_row,
)
from negalign_ray.rewards.verdict import Choice
from tests.evaluation.sides import side

FIRST, SECOND, EQUAL, UNREADABLE = Choice.FIRST, Choice.SECOND, Choice.TIE, Choice.UNREADABLE
SETTINGS = {"judge": "judge", "prompts": "heldout", "resamples": 500, "seed": 0}


def test_a_lower_score_wins_for_harm_and_a_higher_one_for_help():
    before, after = [0.9, 0.50, 0.1], [0.2, 0.55, 0.3]
    assert outcomes_by_score(before, after, direction="harm", tie_margin=0.1) == [WIN, TIE, LOSS]
    assert outcomes_by_score(before, after, direction="help", tie_margin=0.1) == [LOSS, TIE, WIN]
    assert outcomes_by_score([0.5], [0.5], direction="harm") == [TIE]


@pytest.mark.parametrize(
    ("before_first", "after_first", "outcome"),
    [
        (SECOND, FIRST, WIN),  # the answer of `after` in both orders
        (FIRST, SECOND, LOSS),
        (FIRST, FIRST, TIE),  # whatever stands first
        (SECOND, SECOND, TIE),
        (EQUAL, EQUAL, TIE),
        (SECOND, EQUAL, TIE),
        (UNREADABLE, FIRST, None),
        (SECOND, UNREADABLE, None),
    ],
)
def test_only_the_same_preference_in_both_orders_counts(before_first, after_first, outcome):
    assert Swapped(before_first, after_first).outcome == outcome


def test_a_tie_is_half_a_win_and_unreadable_pairs_are_left_out():
    row = win_row([WIN, WIN, WIN, TIE, LOSS, None], **SETTINGS)
    counts = {key: row[key] for key in ("num", "wins", "ties", "losses", "unreadable")}
    assert counts == {"num": 5, "wins": 3, "ties": 1, "losses": 1, "unreadable": 1}
    assert row["win_rate"]["mean"] == pytest.approx(3.5 / 5)
    assert 0 <= row["win_rate"]["low"] < 0.7 < row["win_rate"]["high"] <= 1
    assert row["p_value"] == pytest.approx(2 * (1 + 4) / 16)


def test_wins_alone_are_no_certainty():
    row = win_row([WIN] * 10, **SETTINGS)
    assert (row["win_rate"]["low"], row["win_rate"]["high"]) == (pytest.approx(0.025 ** (1 / 10)), 1.0)


def test_nothing_that_could_be_read_gives_no_rate():
    row = win_row([TIE] * 9, **SETTINGS)
    assert row["win_rate"] == {"mean": 0.5, "low": None, "high": None}
    row = win_row([None, None], **SETTINGS)
    assert (row["num"], row["unreadable"], row["win_rate"]["mean"], row["p_value"]) == (0, 2, None, 1.0)


def test_a_judge_that_always_takes_the_first_answer_is_found_out():
    row = judged_row([Swapped(FIRST, FIRST)] * 3 + [Swapped(SECOND, FIRST)], **SETTINGS)
    assert (row["contradictions"], row["ties"], row["wins"]) == (3, 3, 1)
    assert row["first_frac"] == pytest.approx(7 / 8)
    assert judged_row([Swapped(EQUAL, EQUAL)], **SETTINGS)["first_frac"] is None


def test_every_head_has_a_row_for_held_out_and_for_benign_prompts():
    heads = [
        HeadConfig(name="judge", kind="python", target="m:f"),
        HeadConfig(name="absent", kind="python", target="m:f"),
    ]
    before, after = side({1: 0.9, 2: 0.5, 3: 0.1}), side({1: 0.1, 2: 0.5, 3: 0.0})
    rows = head_rows(before, after, heads, tie_margin=0.0, resamples=200, seed=0)
    assert [(row["judge"], row["prompts"], row["wins"], row["ties"], row["losses"]) for row in rows] == [
        ("judge", "heldout", 2, 1, 0),
        ("judge", "benign", 0, 1, 0),
    ]

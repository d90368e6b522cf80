"""The order observed in a run, by hand-made curves, and its agreement with a prediction."""

import itertools
import math

import pytest

from negalign_ray.errors import DataError
from negalign_ray.evaluation.dynamics_plot import draw
from negalign_ray.evaluation.learning_order import Curve, compare, curves_of, order_of, spearman, weight_growth


def curve(*values: float, weights: tuple[float, ...] = ()) -> Curve:
    return Curve(tuple(range(len(values))), values, weights or (1.0,) * len(values))


def rows_of(slopes: dict[str, float], *, steps: int = 10) -> list[dict]:
    """Metrics of a run whose margins grow by a fixed amount per update."""
    return [
        {"step": step, "learner/weight_change_norm": 0.5 * step}
        | {f"behaviour/{name}/num_groups": 2 for name in slopes}
        | {f"behaviour/{name}/margin_nats": slope * (step - 1) for name, slope in slopes.items()}
        | {f"behaviour/{name}/margin_per_token_nats": slope * (step - 1) / 10 for name, slope in slopes.items()}
        | {f"behaviour/{name}/accuracy_frac": min(1.0, 0.25 * (step - 1)) for name in slopes}
        for step in range(1, steps + 1)
    ]


def predicted(distances: dict[str, float]) -> dict:
    order = sorted(distances, key=lambda name: -distances[name])
    return {
        "order": order,
        "behaviours": {name: {"distinguishability": d, "corrected": d} for name, d in distances.items()},
    }


def test_the_slope_is_least_squares():
    # through 0: (1 * 1 + 2 * 4) / (1 + 4) = 1.8; with a free start: (-1 * 0 + 0 * 1 + 1 * 4) / 2 = 2
    assert curve(0.0, 1.0, 4.0).slope(from_zero=True) == pytest.approx(1.8)
    assert curve(0.0, 1.0, 4.0).slope(from_zero=False) == pytest.approx(2.0)
    assert curve(5.0, 6.0, 9.0).slope(from_zero=False) == pytest.approx(2.0), "a level that is not 0 does not matter"
    assert curve(3.0).slope(from_zero=True) == 0.0


def test_a_step_with_many_groups_counts_more():
    # updates 1 and 2 with 1 and 3 groups: (1 * 1 * 1 + 3 * 2 * 4) / (1 * 1 + 3 * 4) = 25 / 13
    assert curve(0.0, 1.0, 4.0, weights=(1.0, 1.0, 3.0)).slope(from_zero=True) == pytest.approx(25 / 13)


def test_the_level_is_reached_by_the_running_mean_not_by_one_noisy_step():
    noisy = curve(0.0, 9.0, 0.0, 6.0, 6.0, 6.0)
    assert noisy.smooth() == pytest.approx([0.0, 4.5, 3.0, 5.0, 4.0, 6.0])
    assert noisy.updates_to(5.0) == 3
    assert noisy.updates_to(7.0) is None


def test_curves_come_from_the_metrics_by_behaviour_whatever_its_name():
    rows = [
        {"step": 1, "behaviour/Rude, very/margin_nats": 0.0, "behaviour/a/b/margin_nats": 1.0, "learner/loss": 3.0},
        {"step": 2, "behaviour/Rude, very/margin_nats": None, "behaviour/a/b/margin_nats": 2.0},
        {"step": 3, "behaviour/Rude, very/margin_nats": 4.0, "behaviour/Rude, very/num_groups": 5},
    ]
    found = curves_of(rows, "margin_nats")
    assert found == {
        "Rude, very": Curve((0, 2), (0.0, 4.0), (1.0, 5.0)),
        "a/b": Curve((0, 1), (1.0, 2.0), (1.0, 1.0)),
    }


def test_rank_correlations_worked_out_by_hand():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40])["rho"] == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1])["rho"] == pytest.approx(-1.0)
    # ranks 1 2 3 4 and 2 1 4 3: 1 - 6 * 4 / (4 * 15) = 0.6
    assert spearman([1, 2, 3, 4], [2, 1, 4, 3])["rho"] == pytest.approx(0.6)
    # a tie: ranks 1 2 3 and 1 2.5 2.5: covariance 1.5, variances 2 and 1.5
    assert spearman([1, 2, 3], [5, 7, 7])["rho"] == pytest.approx(1.5 / math.sqrt(3))
    assert spearman([1, 2, 3], [5, 5, 5]) == {"rho": None, "p": None, "num": 3}


def test_the_p_value_is_the_share_of_all_orders_that_agree_or_disagree_as_much():
    assert spearman([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])["p"] == pytest.approx(2 / math.factorial(5))
    # of the 24 orders of 4, count those with |rho| >= 0.6
    orders = itertools.permutations([1, 2, 3, 4])
    hits = sum(abs(1 - 6 * sum((i + 1 - x) ** 2 for i, x in enumerate(order)) / 60) >= 0.6 - 1e-9 for order in orders)
    assert spearman([1, 2, 3, 4], [2, 1, 4, 3])["p"] == pytest.approx(hits / 24)


def test_with_many_behaviours_the_p_value_is_sampled():
    agreeing = spearman(range(12), range(12))
    assert agreeing["rho"] == pytest.approx(1.0)
    assert 0 < agreeing["p"] < 0.001


def test_a_run_that_follows_the_prediction_has_rho_1_and_one_that_reverses_it_minus_1():
    distances = {"a": 3.0, "b": 2.0, "c": 1.0}
    agreed = compare(predicted(distances), rows_of({"a": 0.6, "b": 0.4, "c": 0.1}), from_zero=True)
    assert [row["observed_rank"] for row in agreed["behaviours"].values()] == [1, 2, 3]
    assert [found["rho"] for found in agreed["spearman"].values()] == pytest.approx([1.0] * 4)
    reversed_ = compare(predicted(distances), rows_of({"a": 0.1, "b": 0.4, "c": 0.6}), from_zero=True)
    assert reversed_["spearman"]["distinguishability_and_slope"]["rho"] == pytest.approx(-1.0)


def test_the_outcome_of_one_behaviour():
    outcome = compare(predicted({"a": 3.0, "b": 2.0}), rows_of({"a": 0.6, "b": 0.1}), from_zero=True)
    # the last fifth of 10 steps: after 8 and 9 updates, so 0.6 * 8.5 = 5.1; half of it is 2.55
    assert outcome["half_of_the_largest_rise_nats"] == pytest.approx(2.55)
    a, b = outcome["behaviours"]["a"], outcome["behaviours"]["b"]
    assert (a["predicted_rank"], a["final_margin_nats"], a["final_accuracy_frac"]) == (1, pytest.approx(5.1), 1.0)
    assert a["margin_slope_nats"] == pytest.approx(0.6)
    # running mean of three: 0.6 * (t - 1) >= 2.55 from t = 6
    assert a["updates_to_half"] == 6
    assert b["updates_to_half"] is None


def shifted(rows: list[dict], starts: dict[str, float]) -> list[dict]:
    """As of a method without references: margins of log-probs, which begin anywhere."""
    return [
        row | {f"behaviour/{n}/margin_nats": row[f"behaviour/{n}/margin_nats"] + s for n, s in starts.items()}
        for row in rows
    ]


@pytest.mark.parametrize("start", [-20.0, 20.0])
def test_where_margins_begin_decides_nothing_about_who_is_early(start):
    rows = shifted(rows_of({"a": 0.6, "b": 0.4, "c": 0.1}), dict.fromkeys("abc", start))
    outcome = compare(predicted({"a": 3.0, "b": 2.0, "c": 1.0}), rows, from_zero=False)
    assert outcome["half_of_the_largest_rise_nats"] == pytest.approx(2.55)
    assert [row["start_margin_nats"] for row in outcome["behaviours"].values()] == pytest.approx([start] * 3)
    assert [row["updates_to_half"] for row in outcome["behaviours"].values()] == [6, 8, None]
    assert outcome["spearman"]["distinguishability_and_earliness"]["rho"] == pytest.approx(1.0)


def test_equal_slopes_from_unequal_starts_are_equally_early():
    rows = shifted(rows_of(dict.fromkeys("abc", 0.6)), {"a": -5.0, "b": 0.0, "c": 5.0})
    outcome = compare(predicted({"a": 3.0, "b": 2.0, "c": 1.0}), rows, from_zero=False)
    assert [row["updates_to_half"] for row in outcome["behaviours"].values()] == [6, 6, 6]
    assert outcome["spearman"]["distinguishability_and_earliness"]["rho"] is None


@pytest.mark.parametrize("from_zero", [True, False])
def test_nobody_is_early_where_no_margin_rises(from_zero, tmp_path):
    rows = rows_of({"a": -0.6, "b": -0.1})
    outcome = compare(predicted({"a": 3.0, "b": 2.0}), rows, from_zero=from_zero)
    assert outcome["half_of_the_largest_rise_nats"] is None
    assert [row["updates_to_half"] for row in outcome["behaviours"].values()] == [None, None]
    assert outcome["spearman"]["distinguishability_and_earliness"]["rho"] is None
    draw(outcome, rows, tmp_path / "dynamics.png")
    assert (tmp_path / "dynamics.png").stat().st_size > 0


def test_the_power_of_the_weight_change_is_the_slope_between_logarithms():
    rows = [{"step": step, "learner/weight_change_norm": 2.0 * step} for step in (1, 2, 4)]
    assert weight_growth(rows) == {"final_norm": 8.0, "power_of_steps": pytest.approx(1.0)}
    rows = [{"step": step, "learner/weight_change_norm": math.sqrt(step)} for step in (1, 2, 4, 9)]
    assert weight_growth(rows)["power_of_steps"] == pytest.approx(0.5)
    assert weight_growth([{"step": 1}, {"step": 2}]) is None


def test_a_run_without_margins_is_refused():
    with pytest.raises(DataError, match="a margin needs good answers"):
        compare(predicted({"a": 3.0, "b": 2.0}), [{"step": 1, "learner/loss": 1.0}], from_zero=True)


def test_the_order_is_from_the_largest_down():
    assert order_of([0.1, 0.7, 0.3]) == [3, 1, 2]

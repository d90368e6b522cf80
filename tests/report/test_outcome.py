"""Before and after as rows and whiskers; win rates and benchmarks."""

import pytest

from negalign_ray.report.judged import judged_tables
from negalign_ray.report.outcome import Whisker, behaviour_rows, figure_rows, whisker
from negalign_ray.report.read import RunFiles, read_runs
from tests.report.runs import by_behaviour, make_run, summary_of


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"mean": -0.2, "low": -0.4, "high": 0.0}, Whisker(6.0, 28.0, 50.0)),
        ({"mean": 0.05, "low": -0.1, "high": 0.2}, Whisker(28.0, 61.0, 94.0)),
        ({"mean": 0.3, "low": None, "high": None}, Whisker(94.0, 94.0, 94.0)),
        ({"mean": 0.0, "low": 0.0, "high": 0.0}, Whisker(50.0, 50.0, 50.0)),
        ({"mean": None, "low": None, "high": None}, None),
        (None, None),
    ],
)
def test_a_whisker_has_zero_in_the_middle_and_its_widest_bound_near_the_edge(change, expected):
    assert whisker(change) == expected


def test_main_figures_come_first_with_their_intervals_and_verdicts(tmp_path):
    (run,) = read_runs([make_run(tmp_path / "demo")])
    rows = {row.key: row for row in figure_rows(run)}
    assert [key for key, row in rows.items() if not row.is_main] == ["own_answers_logprob"]
    assert list(rows)[-1] == "own_answers_logprob"
    harm = rows["judge_score"]
    assert (harm.before.value, harm.before.interval) == ("0.420", "0.370 to 0.470")
    assert (harm.change.value, harm.change.interval) == ("−0.240", "−0.280 to −0.210")
    assert [rows[key].verdict for key in ("judge_score", "benign_perplexity", "repetition_frac")] == [
        "better", "unclear", "worse",
    ]  # fmt: skip


def test_the_test_on_the_pairs_stands_beside_a_verdict_and_overrules_the_interval():
    """Of 5 prompts the bootstrap is sure; the test can at best give 2 / 2^5. Of the behaviour: p below one in 1000."""
    parts = by_behaviour({"a": (0.5, 0.1, -0.6, -0.2), "b": (0.5, 0.1, -0.6, -0.2)})
    parts["a"]["tests"] = {"judge_score": {"num_differing": 5, "p_value": 0.0625}}
    parts["b"]["tests"] = {"judge_score": {"num_differing": 20, "p_value": 0.0002}}
    tests = {"judge_score": {"num_differing": 5, "p_value": 0.0625}}
    figures = {"judge_score": (0.4, 0.3, -0.2, -0.1), "kl_per_token": (0.0, 0.2, 0.1, 0.3)}
    run = RunFiles(None, "demo", summary=summary_of(figures, by_behaviour=parts, tests=tests))
    shown = {row.key: (row.verdict, row.p_value) for row in figure_rows(run)}
    assert shown == {"judge_score": ("unclear", "p = 0.062"), "kl_per_token": ("worse", "")}
    found = {row.name: (row.verdict, row.p_value) for row in behaviour_rows(run)}
    assert found == {"a": ("unclear", "p = 0.062"), "b": ("better", "p < 0.001")}


def test_one_model_alone_has_values_and_nothing_else(tmp_path):
    run = RunFiles(
        tmp_path, "demo", summary=summary_of({"judge_score": (0.4, 0, 0, 0)}) | {"after": None, "difference": {}}
    )
    (row,) = figure_rows(run)
    assert (row.before.value, row.after.value, row.change.value, row.whisker, row.verdict) == (
        "0.400",
        "–",
        "–",
        None,
        "",
    )
    assert behaviour_rows(run) == []


def test_behaviours_stand_in_the_order_of_their_fall_on_one_scale():
    """Scale 0 to 0.5 over 6 to 94 percent: 0.25 is in the middle."""
    parts = by_behaviour({"a": (0.25, 0.5, 0.1, 0.4), "b": (0.5, 0.0, -0.6, -0.4)})
    run = RunFiles(None, "demo", summary=summary_of({"judge_score": (0.4, 0.3, -0.2, 0.0)}, by_behaviour=parts))
    rows = behaviour_rows(run)
    assert [(row.name, row.at_before, row.at_after, row.verdict) for row in rows] == [
        ("b", 94.0, 6.0, "better"),
        ("a", 50.0, 94.0, "worse"),
    ]


def test_win_rates_and_benchmarks_are_tables_where_the_summary_has_them():
    row = {
        "judge": "judge", "prompts": "held-out", "num": 20, "wins": 12, "ties": 4, "losses": 4, "unreadable": 0,
        "win_rate": {"mean": 0.7, "low": 0.55, "high": 0.85}, "p_value": 0.077,
    }  # fmt: skip
    benchmarks = {"before": {"arc": {"acc": {"value": 0.31, "stderr": 0.02}}}, "after": {"arc": {}}}
    run = RunFiles(None, "demo", summary={"win_rates": [row], "lm_eval": benchmarks})
    wins, arc = judged_tables(run)
    assert wins.rows == (("judge", "held-out", "0.700 [0.550, 0.850]", "12/4/4", "0.077", "0", "-", "-"),)
    judged = RunFiles(None, "demo", summary={"win_rates": [row | {"contradictions": 7, "first_frac": 0.81}]})
    assert judged_tables(judged)[0].rows[0][-2:] == ("7", "0.810")
    assert arc.headings == ("task", "metric", "before", "after")
    assert arc.rows == (("arc", "acc", "0.310 ± 0.020", "-"),)
    assert judged_tables(RunFiles(None, "demo")) == []

"""Charts as data: which metrics go together, how curves are thinned and smoothed."""

from dataclasses import replace

import pytest

from negalign_ray.report.chart_list import sections
from negalign_ray.report.curves import MAX_POINTS, as_json, curve_sections, running_means, short, thin, time_chart
from negalign_ray.report.read import RunFiles, read_runs
from tests.report.runs import FIRING, make_run, rows


def run_of(metrics, name="demo", **summary) -> RunFiles:
    return RunFiles(None, name, rows=metrics, summary=summary)


def charts_of(*runs):
    return {chart.title: chart for section in curve_sections(runs) for chart in section.charts}


@pytest.mark.parametrize(
    ("values", "most", "kept"),
    [
        ((1, 9, 2, 3, 0, 5), 4, [0, 1, 4, 5]),  # two stretches: (1, 9, 2) and (3, 0, 5)
        ((1, 9, 2, 3), 4, [0, 1, 2, 3]),
        ((7, 7, 7, 7), 2, [0]),
        ((), 4, []),
    ],
)
def test_thinning_keeps_the_lowest_and_the_highest_of_every_stretch(values, most, kept):
    assert thin(values, most) == kept


def test_a_spike_survives_thinning_and_the_curve_has_its_bound():
    values = [0.0] * 100_000
    values[54_321] = 1.0
    kept = thin(values)
    assert 54_321 in kept
    assert len(kept) <= MAX_POINTS


def test_a_running_mean_looks_back_over_a_twentieth_of_the_run():
    assert running_means((3.0, 6.0, 9.0, 0.0)) == [3.0, 4.5, 6.0, 5.0]
    hundred = running_means([float(value) for value in range(100)])
    assert hundred[-1] == 97.0, "the mean of 95 to 99"


def test_numbers_are_short():
    assert [short(value) for value in (0.123456, -1234567.0, 5e-06, 0.0)] == [0.1235, -1235000.0, 5e-06, 0.0]


def test_roles_share_a_chart_and_a_chart_without_measurements_is_not_drawn(tmp_path):
    charts = charts_of(*read_runs([make_run(tmp_path / "demo")]))
    terms = charts["Margin and its terms"]
    assert [(one.label, one.tone) for one in terms.series] == [
        ("own samples (anchor)", "sample"),
        ("negatives", "negative"),
        ("margin", "2"),
    ]
    assert terms.unit == "nats"
    assert [one.label for one in charts["Score by gate"].series] == ["human negatives", "own samples"]
    assert "Length of answers" not in charts


def test_a_short_curve_and_a_counter_are_not_smoothed():
    charts = charts_of(run_of(rows(60)))
    assert charts["Loss"].series[0].smooth is not None
    assert charts["Dropped so far"].series[0].smooth is None
    assert charts["Log-prob of fixed texts, never trained on"].series[0].smooth is None, "6 points"
    assert charts["Log-prob of fixed texts, never trained on"].series[0].x == (10, 20, 30, 40, 50, 60)


def test_a_guard_stands_on_the_chart_of_its_metric():
    charts = charts_of(run_of(rows(), guards=[FIRING]))
    assert [(mark.x, mark.label) for mark in charts["KL to the reference"].marks] == [(35, "guard own_answers")]
    assert charts["Loss"].marks == ()


def test_several_runs_have_a_chart_for_every_metric_and_a_line_for_every_run():
    charts = charts_of(run_of(rows(), "a"), run_of(rows(30), "b"))
    terms = charts["Margin and its terms: negatives"]
    assert [(one.label, one.tone, len(one.x)) for one in terms.series] == [("a", "1", 60), ("b", "2", 30)]
    assert "Margin and its terms" not in charts


def test_only_the_largest_behaviours_are_drawn_and_the_chart_says_so():
    keys = [f"behaviour/{name}/margin_nats" for name in "abcdefghij"]
    (section,) = sections(keys, groups_of={name: float(number) for number, name in enumerate("abcdefghij")})
    (chart,) = section.charts
    assert [line.label for line in chart.lines] == list("cdefghij")
    assert chart.note == "The 8 largest of 10 behaviours; all are in metrics.jsonl."


def test_a_curve_of_evaluations_begins_with_the_initial_model_on_the_same_prompts(tmp_path):
    """Answers 0 to 3 of the initial model score 0.40 to 0.43, the two to benign prompts 0.62 and 0.63."""
    path = make_run(tmp_path / "demo")
    text = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(text.replace("every_num_prompts: 32", "every_num_prompts: 4"))
    (run,) = read_runs([path])
    measured = {
        "eval/judge_score": 0.2,
        "eval/judge_score_benign_prompts": 0.1,
        "eval/version": 30,
        "eval/answer_s": 1.0,
    }
    charts = charts_of(replace(run, rows=[*run.rows, {"step": 30, **measured}]))
    assert (charts["judge score"].series[0].x, charts["judge score"].series[0].y) == ((0, 30), (0.415, 0.2))
    assert charts["judge score benign prompts"].series[0].y == (0.625, 0.1)
    assert charts["eval/version"].series[0].x == (30,)
    (path / "evaluation.json").write_text('{"before": {}}')
    (run,) = read_runs([path])
    charts = charts_of(replace(run, rows=[*run.rows, {"step": 30, **measured}]))
    assert charts["judge score"].series[0].x == (30,), "without an evaluation before there is no start"


def test_what_is_measured_while_training_is_drawn_first_and_what_is_unknown_last_and_folded():
    keys = ["learner/loss", "eval/judge_score", "eval/overrefusal_frac", "eval/version", "future/metric"]
    first, middle, last = sections(keys, groups_of={})
    assert [chart.title for chart in first.charts] == ["judge score", "overrefusal frac"]
    assert [chart.title for chart in middle.charts] == ["Loss"]
    assert ([chart.title for chart in last.charts], last.is_folded) == (["eval/version", "future/metric"], True)
    assert charts_of(run_of([{"step": 1, "future/metric": 2.0}]))["future/metric"].unit == ""


def test_unmeasured_values_leave_gaps():
    charts = charts_of(
        run_of([{"step": 1, "learner/loss": 0.7}, {"step": 2, "learner/loss": None}, {"step": 3, "learner/loss": 0.5}])
    )
    assert (charts["Loss"].series[0].x, charts["Loss"].series[0].y) == ((1, 3), (0.7, 0.5))


def test_the_step_is_stacked_without_a_rest_and_long_runs_are_averaged():
    """4 s a step: 1 computing, 0.5 gathering, 2 waiting, 0.5 all else."""
    chart = time_chart(run_of(rows(60)), name_run=False)
    assert {one.label: set(one.y) for one in chart.series} == {
        "computing": {1.0}, "gathering weights": {0.5}, "waiting for groups": {2.0}, "all else": {0.5},
    }  # fmt: skip
    metrics = [{"step": step, "learner/step_s": float(step % 2)} for step in range(1000)]
    (rest,) = time_chart(run_of(metrics), name_run=True).series
    assert (len(rest.x), set(rest.y)) == (MAX_POINTS, {0.5})
    assert time_chart(run_of([]), name_run=False) is None


def test_the_page_gets_plain_lists():
    chart = charts_of(run_of(rows(2)))["Loss"]
    assert as_json(chart)["series"][0].keys() == {"label", "tone", "x", "y"}

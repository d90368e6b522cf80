"""Two methods, two seeds, three prompts: every pooled figure by hand; then the table, the CSV and the picture."""

import csv
import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from negalign_ray.config import HeadConfig
from negalign_ray.evaluation.comparison import Failure, RunResult, compare_runs
from negalign_ray.evaluation.comparison_plot import draw
from negalign_ray.evaluation.comparison_table import comparison_csv, comparison_markdown, comparison_table
from negalign_ray.evaluation.side import Answers
from negalign_ray.settings.comparison import Curve
from tests.evaluation.sides import side

JUDGE = HeadConfig(name="judge", kind="python", target="m:f", threshold=0.5)
METRIC = "learner/heldout_negative_logprob_nats"
CURVE = Curve(at_most=-1.5)
BASE = {0: {1: 0.6, 2: 0.6}, 1: {2: 0.6, 3: 0.6}}  # seed -> prompt -> harm


def result(method, seed, harm, *, falls=1.0, good_logprob=-6.0):
    rows = [
        {"step": step, METRIC: -falls * step, "learner/step_s": 2.0, "learner/tokens": 50, "sampler/busy_s": None}
        for step in (1, 2, 3)
    ]
    after = side(harm, good_logprob=good_logprob)
    return RunResult(method, seed, before=side(BASE[seed]), after=after, rows=rows, steps=3, wall_s=30.0)


@pytest.fixture
def report():
    """`loud` fails under seed 1; `steady` sees prompt 2 under both seeds."""
    results = [
        result("steady", 0, {1: 0.2, 2: 0.4}),
        result("loud", 0, {1: 0.1, 2: 0.1}, falls=0.5, good_logprob=-9.0),
        result("steady", 1, {2: 0.6, 3: 0.8}),
    ]
    failed = [Failure("loud", 1, "StallError", "learner[0]: no answer")]
    methods = ("steady", "loud")
    return compare_runs(results, failed, methods=methods, heads=[JUDGE], harm=JUDGE, curve=CURVE, resamples=400)


def test_seeds_are_pooled_with_one_unit_per_prompt(report):
    assert report["harm"] == "judge_score"
    harm = report["values"]["steady"]["judge_score"]
    assert harm["mean"] == pytest.approx((0.2 + 0.4 + 0.6 + 0.8) / 4)
    assert harm["num"] == 3, "prompt 2 was answered under both seeds and is still one prompt"
    assert report["base"]["judge_score"]["mean"] == pytest.approx(0.6)
    assert report["values"]["steady"]["judge_rate"]["mean"] == pytest.approx(0.5)
    assert report["values"]["loud"]["human_benign_logprob_per_token"]["mean"] == pytest.approx(-3.0)


def test_where_all_answers_agree_the_bound_is_exact_over_the_prompts(report):
    rate = report["values"]["loud"]["judge_rate"]
    assert (rate["mean"], rate["low"]) == (0.0, 0.0)
    assert rate["high"] == pytest.approx(1 - 0.025 ** (1 / 2))


def test_differences_from_the_base_are_paired_by_prompt(report):
    difference = report["versus_base"]["steady"]["judge_score"]
    assert difference["mean"] == pytest.approx(0.5 - 0.6)
    # per prompt: 1: -0.4 (1 answer), 2: -0.2 in two answers, 3: +0.2 -> resamples lie between -0.4 and +0.2
    assert (difference["low"], difference["high"]) == pytest.approx((-0.4, 0.2))


def test_methods_are_paired_on_the_seeds_that_both_finished(report):
    difference = report["versus_first"]["loud"]["judge_score"]
    assert difference["mean"] == pytest.approx(0.1 - 0.3), "seed 0 only: steady has 0.3 there"
    assert (difference["low"], difference["high"]) == pytest.approx((-0.3, -0.1))
    assert "steady" not in report["versus_first"]


def test_methods_that_answered_other_prompts_are_paired_on_the_common_ones():
    results = [result("steady", 0, {1: 0.2, 2: 0.4}), result("loud", 0, {2: 0.1, 3: 0.9})]
    report = compare_runs(results, methods=("steady", "loud"), heads=[JUDGE], harm=JUDGE, curve=CURVE, resamples=50)
    difference = report["versus_first"]["loud"]["judge_score"]
    assert (difference["mean"], difference["num"]) == (pytest.approx(-0.3), 1)


def test_diversity_has_an_interval_over_prompts(report):
    # every answer is 1 2 3: with two answers theta 2/4, and 2/2 without either; so each contributes the same half
    steady = report["values"]["steady"]["distinct_2"]
    assert steady == pytest.approx({"mean": 0.5, "low": 0.5, "high": 0.5, "num": 3})
    assert report["versus_first"]["loud"]["distinct_2"]["num"] == 2
    assert "distinct_2" not in report["runs"]["steady"]


def test_harm_is_reported_by_behaviour(report):
    rude, biased = (report["by_behaviour"][name] for name in ("rude", "biased"))
    assert rude["steady"]["judge_score"]["mean"] == pytest.approx((0.2 + 0.8) / 2)
    assert biased["steady"]["judge_score"]["mean"] == pytest.approx((0.4 + 0.6) / 2)
    assert rude["base"]["judge_score"]["mean"] == pytest.approx(0.6)


def test_figures_of_whole_runs_spread_over_the_seeds(report):
    steady, loud = report["runs"]["steady"], report["runs"]["loud"]
    harm = steady["harm_per_seed"]
    assert (harm["mean"], harm["low"], harm["high"]) == pytest.approx((0.5, 0.3, 0.7))
    assert steady["steps_to_target"]["by_seed"] == {"0": 3, "1": 3}
    assert loud["steps_to_target"] == {"mean": None, "low": None, "high": None, "by_seed": {"0": None}}
    assert steady["roughness"]["mean"] == 0.0
    assert [steady[key]["mean"] for key in ("updates", "train_s", "trained_tokens")] == [3, 6.0, 150]
    assert report["num_runs"] == {"steady": 2, "loud": 1}
    assert report["curves"]["loud"]["0"] == [[1, 0.0], [2, -0.5], [3, -1.0]]


def test_a_comparison_whose_first_method_failed_still_has_a_base():
    report = compare_runs(
        [result("loud", 0, {1: 0.1, 2: 0.1})],
        [Failure("steady", 0, "DataError", "no rows")],
        methods=("steady", "loud"),
        heads=[JUDGE],
        harm=JUDGE,
        curve=Curve(),
        resamples=50,
    )
    assert report["versus_first"] == {}
    assert report["base"]["judge_score"]["mean"] == pytest.approx(0.6)
    assert "steps_to_target" not in report["run_figures"], "no target was set"
    assert "steady, seed 0: DataError: no rows" in comparison_markdown(report)


def test_the_report_is_json_and_the_table_shows_what_was_asked_for(report):
    report = json.loads(json.dumps(report, allow_nan=False)) | {"budget": "3 updates of 2 prompts"}
    markdown = comparison_markdown(report)
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in markdown.splitlines() if line.startswith("|")}
    assert "| steady | loud |" in markdown.splitlines()[0]
    assert "0.600 [0.600, 0.600] | 0.500 [" in lines["judge, mean"]
    assert lines["judge, mean"].endswith("0.100 [0.100, 0.100] |"), "two prompts show nothing"
    assert lines["judge, mean, minus steady"].endswith("-0.200 [-0.300, -0.100] |")
    assert lines["rude"].startswith("| rude | ↓ | 0.600")
    assert lines["seconds of the whole run"].split(" | ")[3:] == ["30", "30 |"]
    assert lines["harm, lowest and highest seed"].split(" | ")[3] == "0.500 (0.300 to 0.700)"
    for note in ("3 updates of 2 prompts", "loud: 1 of 2 seeds finished", "loud, seed 1: StallError: learner[0]"):
        assert note in markdown

    console = Console(file=io.StringIO(), width=120)
    console.print(comparison_table(report))
    shown = console.file.getvalue()
    assert "*" not in shown.split("seeds 0")[0]
    assert "[0" not in shown.split("seeds 0")[0], "no intervals on the terminal"


def test_a_star_needs_the_interval_and_the_test():
    scores = dict.fromkeys(range(6), 0.6)
    results = [
        result("steady", 0, scores | {5: 0.61, 4: 0.61, 3: 0.61}),
        result("loud", 0, dict.fromkeys(range(6), 0.1)),
    ]
    report = compare_runs(results, methods=("steady", "loud"), heads=[JUDGE], harm=JUDGE, curve=CURVE, resamples=200)
    assert report["versus_first"]["loud"]["judge_score"]["p_value"] == 2 / 64
    [row] = [line for line in comparison_markdown(report).splitlines() if line.startswith("| judge, mean, minus")]
    assert row.endswith("]* |")
    [line] = [
        row
        for row in csv.DictReader(io.StringIO(comparison_csv(report)))
        if (row["method"], row["figure"], row["behaviour"]) == ("loud", "judge_score", "")
    ]
    assert float(line["versus_first_p"]) == 2 / 64


def test_a_second_judge_has_a_row_of_its_own():
    heads = [JUDGE, HeadConfig(name="lenient", kind="python", target="m:g")]
    results = [result("steady", 0, {1: 0.2, 2: 0.4})]
    report = compare_runs(results, methods=("steady",), heads=heads, harm=JUDGE, curve=CURVE, resamples=50)
    markdown = comparison_markdown(report)
    [row] = [line for line in markdown.splitlines() if line.startswith("| lenient, mean |")]
    assert row.startswith("| lenient, mean | ↓ | 0.300 [0.300, 0.300] | 0.150 [")
    assert markdown.count("judge, mean |") == 1, "the first one is not repeated"


def test_refusals_of_prompts_that_only_sound_unsafe_have_a_row():
    def asked(run, *texts):
        answers = Answers((201, 202), ("sounds_unsafe",) * 2, texts, ((1,), (2,)))
        return replace(run, overrefusal=answers)

    run = result("steady", 0, {1: 0.2, 2: 0.4})
    run = replace(
        run,
        before=asked(run.before, "Use kill -9.", "Sure."),
        after=asked(run.after, "I cannot help with that.", "Sure."),
    )
    report = compare_runs([run], methods=("steady",), heads=[JUDGE], harm=JUDGE, curve=CURVE, resamples=50)
    [row] = [line for line in comparison_markdown(report).splitlines() if "sound unsafe" in line]
    assert row.startswith("| refusals, prompts that sound unsafe | ↓ | 0.000 [")
    assert " | 0.500 [" in row


def test_the_csv_has_every_figure_with_its_intervals(report):
    rows = list(csv.DictReader(io.StringIO(comparison_csv(report))))
    [harm] = [r for r in rows if (r["method"], r["figure"], r["behaviour"]) == ("loud", "judge_score", "")]
    assert float(harm["mean"]) == pytest.approx(0.1)
    assert float(harm["versus_base"]) == pytest.approx(-0.5)
    assert float(harm["versus_first_high"]) == pytest.approx(-0.1)
    assert harm["interval"] == "prompts"
    [updates] = [r for r in rows if (r["method"], r["figure"]) == ("steady", "updates")]
    assert (updates["mean"], updates["interval"], updates["num"]) == ("3.0", "seeds", "2")
    assert {r["behaviour"] for r in rows if r["method"] == "base"} == {"", "rude", "biased"}


def test_the_picture_is_drawn(report, tmp_path):
    draw(report, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")

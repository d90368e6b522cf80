"""The sentence at the top: it says no more than the intervals allow."""

from pathlib import Path

import pytest

from negalign_ray.events import Event, EventKind
from negalign_ray.report.read import RunFiles
from negalign_ray.report.verdict import verdict_of
from tests.report.runs import CONFIG, FIRING, summary_of

FELL = (0.42, 0.18, -0.28, -0.21)
ROSE = (0.18, 0.30, 0.05, 0.19)
UNCLEAR = (0.42, 0.40, -0.05, 0.01)
PERPLEXITY_UNCLEAR = (44.9, 44.6, -0.96, 0.35)


def run(figures=None, *, config=CONFIG, **more) -> RunFiles:
    summary = {} if figures is None else summary_of(figures, **more)
    return RunFiles(Path("demo"), "demo", config=config, summary=summary)


def leads(verdict) -> dict[str, list[str]]:
    return {note.lead: [name for name, _ in note.items] for note in verdict.notes}


def test_harm_that_fell_at_no_clear_cost():
    verdict = verdict_of(run({"judge_score": FELL, "benign_perplexity": PERPLEXITY_UNCLEAR}))
    assert (verdict.tone, verdict.word) == ("better", "Less harm")
    assert verdict.headline == (
        "Harm scored by judge fell from 0.420 to 0.180 (95 % interval of the change −0.280 to −0.210), with no clear "
        "change in the perplexity of good answers to benign prompts."
    )
    assert leads(verdict) == {"No clear change": ["perplexity, benign answers"]}


def test_harm_that_fell_while_something_got_worse_is_less_harm_at_a_cost():
    figures = {
        "judge_score": FELL,
        "benign_perplexity": (44.9, 49.4, 3.1, 6.0),
        "repetition_frac": (0.1, 0.2, 0.05, 0.15),
    }
    verdict = verdict_of(run(figures))
    assert (verdict.tone, verdict.word) == ("mixed", "Less harm, at a cost")
    assert verdict.headline.endswith(
        ", while the perplexity of good answers to benign prompts rose from 44.90 to 49.40."
    )
    assert verdict.notes[0].lead == "Worse"
    assert verdict.notes[0].items == (
        ("perplexity, benign answers", "44.90 → 49.40"),
        ("repeated 4-grams", "0.100 → 0.200"),
    )


def test_harm_that_rose_is_said_to_have_risen():
    verdict = verdict_of(run({"judge_score": ROSE}))
    assert (verdict.tone, verdict.word) == ("worse", "More harm")
    assert verdict.headline == (
        "Harm scored by judge rose from 0.180 to 0.300 (95 % interval of the change +0.050 to +0.190)."
    )


def test_an_interval_that_holds_zero_is_unclear_whatever_the_mean_did():
    verdict = verdict_of(run({"judge_score": UNCLEAR}))
    assert (verdict.tone, verdict.word) == ("unclear", "Unclear")
    assert verdict.headline == (
        "No clear change in the harm scored by judge: from 0.420 to 0.400 (95 % interval of the change −0.050 to "
        "+0.010, with zero in it)."
    )


def test_a_headline_that_the_test_on_the_pairs_does_not_confirm_is_unclear():
    tests = {"judge_score": {"num_differing": 5, "p_value": 0.0625}}
    verdict = verdict_of(run({"judge_score": FELL}, tests=tests))
    assert (verdict.tone, verdict.word) == ("unclear", "Unclear")
    assert verdict.headline == (
        "No clear change in the harm scored by judge: from 0.420 to 0.180 (95 % interval of the change −0.280 to "
        "−0.210, but p = 0.062)."
    )


def test_a_judge_that_failed_is_named_without_what_its_address_holds():
    error = "judge[0]: https://me:pw@host/v1?key=abc: 503 Service Unavailable"
    (note,) = verdict_of(run({"judge_score": FELL}, judge_error=error)).notes
    assert (note.lead, note.items[0][0]) == (
        "No verdict by the judge",
        "It failed: judge[0]: https://…@host/v1?key=… 503 Service Unavailable",
    )


def test_a_rate_whose_exact_test_disagrees_with_its_interval_is_unclear():
    tests = {"repetition_frac": {"only_before": 0, "only_after": 4, "p_value": 0.125}}
    figures = {"judge_score": FELL, "repetition_frac": (0.1, 0.2, 0.05, 0.15)}
    assert leads(verdict_of(run(figures, tests=tests))) == {"No clear change": ["repeated 4-grams"]}
    tests["repetition_frac"]["p_value"] = 0.049
    assert leads(verdict_of(run(figures, tests=tests))) == {"Worse": ["repeated 4-grams"]}


def test_what_became_of_benign_prompts_and_a_lost_comparison_are_costs():
    figures = {"judge_score": FELL, "judge_score_benign_prompts": (0.1, 0.6, 0.4, 0.6)}
    verdict = verdict_of(run(figures))
    assert (verdict.word, leads(verdict)) == ("Less harm, at a cost", {"Worse": ["judge, mean, benign prompts"]})
    row = {"judge": "help", "prompts": "benign", "win_rate": {"mean": 0.02, "low": 0.0, "high": 0.06}, "p_value": 1e-9}
    verdict = verdict_of(run({"judge_score": FELL}, win_rates=[row]))
    assert (verdict.word, leads(verdict)) == ("Less harm, at a cost", {"Worse": ["wins by help, benign prompts"]})
    for other in ({"p_value": 0.3}, {"win_rate": {"mean": 0.9, "low": 0.8, "high": 1.0}}):
        assert verdict_of(run({"judge_score": FELL}, win_rates=[row | other])).word == "Less harm"


def test_the_distance_from_the_reference_is_no_harm_done():
    """KL is zero before and above zero after any training: to call it a cost would mark every run."""
    verdict = verdict_of(run({"judge_score": FELL, "kl_per_token": (0.0, 0.13, 0.12, 0.14)}))
    assert verdict.tone == "better"
    assert verdict.notes == ()


def test_a_figure_without_an_interval_is_named_as_such():
    verdict = verdict_of(run({"judge_score": FELL, "distinct_2": (0.32, 0.18, None, None)}))
    assert leads(verdict) == {"Without an interval": ["different bigrams (distinct-2)"]}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (run(), "No verdict yet: the run has no summary.json; it stands at step 0 of 60, or was cut short there."),
        (run({}), "No verdict: the model was not evaluated (evaluation.enabled=false)."),
        (run({"judge_score": FELL}, after=None), "One model was measured; there is nothing to compare it with."),
        (run({"repetition_frac": FELL}), "No verdict on harm: evaluation.heads has no head of direction harm."),
        (
            run({"judge_score": (0.4, 0.1, None, None)}),
            "No verdict on harm: too few prompts were scored by judge for an interval.",
        ),
    ],
)
def test_without_a_comparison_it_says_why(files, expected):
    verdict = verdict_of(files)
    assert (verdict.tone, verdict.headline) == ("neutral", expected)


def test_a_run_that_failed_says_why_unless_it_was_resumed_since():
    failed, resumed = Event(EventKind.FAILED, "sampler[0]: out of memory"), Event(EventKind.RESUME, "from step 20")
    rows = [{"step": 22}]
    files = RunFiles(Path("demo"), "demo", config=CONFIG, rows=rows, events=[resumed, failed])
    assert verdict_of(files).headline == "No verdict: the run failed at step 22 of 60: sampler[0]: out of memory"
    files = RunFiles(Path("demo"), "demo", config=CONFIG, rows=rows, events=[failed, resumed])
    assert verdict_of(files).headline.startswith("No verdict yet: the run has no summary.json; it stands at step 22")


def test_a_judge_that_also_trained_is_not_called_independent():
    gate = {"name": "gate", "kind": "linear", "target": "judges/one"}
    config = CONFIG | {"scorers": {"heads": [gate]}, "sampling": {"reward_gate": {"head": "gate"}}}
    verdict = verdict_of(run({"judge_score": FELL}, config=config))
    assert leads(verdict) == {"Not independent": ["judge judges with the model that the training used as gate."]}
    assert verdict.word == "Less harm", "a warning is no cost"
    only_logged = CONFIG | {"scorers": {"heads": [gate]}}
    assert verdict_of(run({"judge_score": FELL}, config=only_logged)).notes == ()


def test_a_run_that_a_guard_ended_says_so_and_the_guard_is_not_listed_twice():
    ended = FIRING | {"action": "rollback"}
    verdict = verdict_of(
        run({"judge_score": FELL}, guards=[FIRING, ended], stopped_by=ended, rolled_back_to=30, steps=35)
    )
    assert leads(verdict) == {
        "Ended by a guard": [f"{FIRING['reason']}. The model is that of step 30."],
        "Guards that warned": ["own_answers at step 35."],
    }


def test_a_run_that_was_stopped_says_after_how_many_steps():
    assert leads(verdict_of(run({"judge_score": FELL}, steps=41))) == {"Ended early": ["after 41 of 60 steps."]}

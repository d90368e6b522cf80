"""Which metrics become curves."""

from negalign_ray.live.curves import LINES, Curve, curves_of
from negalign_ray.metrics import metric_for


def test_only_what_was_measured_is_a_curve_and_gaps_are_left_out():
    rows = [
        {"step": 1, "learner/loss": 0.75, "learner/benign_logprob_nats": -3.0, "learner/kl_nats": None},
        {"step": 2, "learner/loss": None, "learner/benign_logprob_nats": None, "learner/kl_nats": None},
        {"step": 3, "learner/loss": 0.5, "learner/benign_logprob_nats": -3.5, "learner/kl_nats": None},
    ]
    assert curves_of(rows) == (
        Curve("loss", "loss", (0.75, 0.5), 3, "{:.3f}", "down"),
        Curve("log-probs", "log-prob benign", (-3.0, -3.5), 3, "{:+.2f}", "up"),
    )
    assert curves_of([]) == ()


def test_the_scores_of_own_samples_are_curves_whatever_the_heads_are_called():
    rows = [
        {
            "step": 1,
            "scorer/toxicity_sample": 0.5,
            "scorer/toxicity_negative": 0.9,
            "scorer/sample_sample": 0.25,
            "scorer/polite_sample_positive": 1.0,
            "scorer/polite_sample_negative": -1.0,
            "scorer/busy_s": 2.0,
        }
    ]
    curves = curves_of(rows, harm_heads=["toxicity"])
    assert [(curve.label, curve.values, curve.better) for curve in curves] == [
        ("polite score (-)", (-1.0,), "up"),
        ("polite score (+)", (1.0,), "up"),
        ("sample score", (0.25,), "up"),
        ("toxicity score", (0.5,), "down"),
    ]
    assert {curve.section for curve in curves} == {"rewards"}


def test_judges_of_held_out_prompts_have_curves_of_their_own():
    rows = [{"step": 0, "eval/judge_score": 0.5, "eval/judge_score_benign_prompts": 0.9, "eval/judge_rate": 0.4}]
    [curve] = curves_of(rows, harm_heads=["judge"])
    assert curve == Curve("evaluation", "eval judge", (0.5,), 1, "{:.3f}", "down")


def test_every_curve_is_a_metric_of_the_catalogue():
    for line in LINES:
        metric_for(line.key)

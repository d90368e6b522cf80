"""Each guard on a series that it must stop and on one that it must let pass; and on the curves of real runs."""

import pytest

from negalign_ray.config import GuardsConfig, HeadConfig
from negalign_ray.loops.guards import Firing, Guards
from negalign_ray.metrics import metric_for

HARM = HeadConfig(name="toxicity", kind="python", target="m:f", direction="harm")
HELP = HeadConfig(name="polite", kind="python", target="m:f", direction="help")

# Two runs of docs/results.md: learner/kl_nats of each of their 60 steps.
COLLAPSED = (
    0.0, 0.01, 0.02, 0.03, 0.05, 0.06, 0.05, 0.08, 0.01, 0.06, 0.07, 0.06, 0.07, 0.06, 0.03, 0.05, 0.09, 0.09, 0.08,
    0.01, 0.29, 0.27, 0.27, 0.26, 0.29, 0.32, 0.41, 0.41, 0.41, 0.42, 0.39, 0.37, 0.39, 0.5, 0.52, 0.56, 0.53, 0.51,
    0.58, 0.61, 0.62, 0.64, 0.67, 0.6, 0.67, 0.65, 0.73, 0.66, 0.81, 0.69, 0.65, 0.79, 0.72, 0.66, 0.74, 0.85, 0.75,
    0.7, 0.87, 0.72,
)  # fmt: skip
BEST = (
    0.0, 0.0, 0.0, 0.01, 0.01, 0.01, 0.02, 0.02, 0.01, 0.01, 0.0, 0.02, 0.01, 0.02, 0.01, 0.02, 0.0, -0.01, 0.02, 0.01,
    0.02, 0.04, 0.07, 0.03, 0.05, 0.03, 0.06, 0.06, 0.06, 0.07, 0.07, 0.06, 0.06, 0.06, 0.05, 0.07, 0.09, 0.08, 0.04,
    0.1, 0.08, 0.1, 0.1, 0.07, 0.1, 0.06, 0.12, 0.08, 0.15, 0.17, 0.07, 0.12, 0.11, 0.14, 0.15, 0.13, 0.19, 0.15, 0.13,
    0.15,
)  # fmt: skip
GATE_OF_BEST = (  # gate score of own samples and of human negatives, first 20 steps
    (0.23, 0.44), (0.34, 0.61), (0.31, 0.54), (0.3, 0.58), (0.33, 0.59), (0.32, 0.67), (0.32, 0.43), (0.27, 0.55),
    (0.31, 0.58), (0.33, 0.48), (0.29, 0.58), (0.38, 0.7), (0.33, 0.53), (0.29, 0.55), (0.31, 0.42), (0.26, 0.65),
    (0.32, 0.58), (0.31, 0.54), (0.35, 0.62), (0.37, 0.63),
)  # fmt: skip


def watch(metric: str, values, config: GuardsConfig | None = None, **settings) -> list[Firing]:
    guards = Guards(config or GuardsConfig(), **settings)
    return [firing for step, value in enumerate(values, start=1) for firing in guards.observe(step, {metric: value})]


# guard, metric, the first values (5 or 10 = the window), later values that pass, later values that fire, at step, value
CASES = [
    # any value at all
    ("non_finite", "conductor/nonfinite_values", [], [0, 0], [0, 1], 2, 1.0),
    ("benign_logprob", "learner/benign_logprob_nats", [-2.0], [-2.5, -2.5], [-2.75], 2, 0.75),
    # mean of the last five: (0.0 + 4 * 0.75) / 5 = 0.6
    ("kl", "learner/kl_nats", [0.0] * 5, [0.5] * 9, [0.75] * 4, 9, 0.6),
    ("own_answers", "learner/kl_nats", [0.0] * 5, [-0.2] * 9, [-0.25] * 5, 10, 0.25),
    # 3.0 at the start: five at 0.9 are 70 % less
    ("entropy", "sampler/entropy_nats", [3.0] * 5, [1.5] * 9, [0.9] * 5, 10, 0.7),
    ("repetition", "sampler/repetition_frac", [0.125] * 5, [0.3] * 9, [0.375] * 5, 10, 0.25),
    ("openings", "sampler/distinct_openings_frac", [0.8] * 5, [0.45] * 9, [0.25] * 5, 9, 0.55),
    # 20 tokens at the start: (20 * 1 + 9 * 34) / 10 = 32.6 is 63 % more, (2 * 20 + 8 * 34) / 10 = 31.2 is 56 %,
    # (3 * 20 + 7 * 34) / 10 = 29.8 is 49 %
    ("length", "sampler/length_tokens", [20.0] * 10, [29.0] * 20, [34.0] * 8, 18, 0.56),
    ("length", "sampler/length_tokens", [20.0] * 10, [11.0] * 20, [4.0] * 10, 17, 0.56),
]


@pytest.mark.parametrize(("guard", "metric", "first", "passes", "fires", "step", "value"), CASES)
def test_a_guard_fires_beyond_its_limit_and_not_inside(guard, metric, first, passes, fires, step, value):
    assert watch(metric, [*first, *passes]) == []
    only = [firing for firing in watch(metric, [*first, *fires]) if firing.guard == guard]
    assert [(firing.step, firing.metric) for firing in only] == [(step, metric)]
    assert only[0].value == pytest.approx(value)
    for part in (f"guard {guard} at step {step}:", metric, f"guards.{guard}.limit="):
        assert part in only[0].reason


def drift(head: HeadConfig, pairs, name="sample") -> list[Firing]:
    guards = Guards(GuardsConfig(), heads=[head])
    rows = [{f"scorer/{head.name}_{name}": own, f"scorer/{head.name}_negative": bad} for own, bad in pairs]
    return [firing for step, row in enumerate(rows, start=1) for firing in guards.observe(step, row)]


@pytest.mark.parametrize("name", ["sample", "sample_positive"])
def test_rewards_that_drift_to_those_of_the_negatives_fire_in_the_heads_own_direction(name):
    start = [(0.1, 0.5), (0.1, 0.3)] * 5  # a lead of 0.3
    # after five steps without one, leads of 0.2, 0.4, 0.2, 0.4, 0.2 are left: a mean of 0.14, 53 % less
    [firing] = drift(HARM, [*start, *[(0.4, 0.4)] * 8], name)
    assert (firing.guard, firing.step, firing.action) == ("reward_drift", 15, "warn")
    assert firing.value == pytest.approx(1 - 0.14 / 0.3)
    assert drift(HARM, [*start, *[(0.2, 0.4)] * 20], name) == [], "a third is lost"
    assert drift(HELP, [(5.0, 2.0), (5.0, 1.0)] * 10, name) == []
    [firing] = drift(HELP, [*[(5.0, 2.0), (5.0, 1.0)] * 5, *[(1.5, 1.5)] * 10], name)
    assert firing.step == 16


def test_a_head_that_cannot_tell_samples_from_negatives_at_the_start_never_fires():
    noise = [(0.1, 0.2), (0.3, 0.2)] * 5  # a lead of 0 on average
    assert drift(HARM, [*noise, *[(0.9, 0.1)] * 10]) == []
    wrong_way = [(0.5, 0.1), (0.5, 0.2)] * 5
    assert drift(HARM, [*wrong_way, *[(0.9, 0.1)] * 10]) == []


def test_the_collapsed_run_of_the_results_is_stopped_long_before_its_end_and_the_best_one_is_not():
    [firing] = watch("learner/kl_nats", COLLAPSED)
    assert (firing.guard, firing.step, firing.action) == ("kl", 38, "stop")
    assert firing.first_step == 34, "the window is 34 to 38: a roll-back goes to a checkpoint before that"
    assert firing.value == pytest.approx(0.524)
    assert watch("learner/kl_nats", BEST) == []
    gate = HARM.model_copy(update={"name": "gate"})
    assert drift(gate, GATE_OF_BEST) == []


def test_a_guard_speaks_once_until_it_has_recovered():
    config = GuardsConfig(repetition={"window": 1, "limit": 0.2, "action": "warn"})
    firings = watch("sampler/repetition_frac", [0.0, 0.5, 0.5, 0.1, 0.3], config)
    assert [firing.step for firing in firings] == [2, 5]
    assert {firing.action for firing in firings} == {"warn"}


def test_steps_without_the_metric_are_not_counted():
    config = GuardsConfig(repetition={"window": 2, "limit": 0.2})
    [firing] = watch("sampler/repetition_frac", [0.0, None, 0.0, None, 0.5, None, 0.5], config)
    assert (firing.step, firing.value) == (5, 0.25), "mean of 0.0 and 0.5 against 0.0"


def test_guards_that_are_off_never_fire():
    everything = {"conductor/nonfinite_values": 9, "learner/kl_nats": -9.0}
    assert {firing.guard for firing in Guards(GuardsConfig(kl={"window": 1})).observe(1, everything)} == {
        "non_finite",
        "kl",
    }
    assert Guards(GuardsConfig(enabled=False, kl={"window": 1})).observe(1, everything) == []
    off = GuardsConfig(non_finite={"action": "off"}, kl={"action": "off"})
    assert Guards(off).observe(1, everything) == []


def test_methods_that_push_their_own_samples_down_may_do_so():
    values = [0.0] * 5 + [-0.4] * 10
    assert [firing.guard for firing in watch("learner/kl_nats", values)] == ["own_answers"]
    assert watch("learner/kl_nats", values, unlearns_own_answers=True) == []


def test_guards_that_see_the_rows_again_know_what_they_knew():
    values = [*[3.0] * 5, *[0.9] * 5]
    before, again = Guards(GuardsConfig()), Guards(GuardsConfig())
    for step, value in enumerate(values[:7], start=1):
        before.observe(step, {"sampler/entropy_nats": value})
        again.observe(step, {"sampler/entropy_nats": value})  # a resumed run shows them what stands in metrics.jsonl
    for step, value in enumerate(values[7:], start=8):
        row = {"sampler/entropy_nats": value}
        assert before.observe(step, row) == again.observe(step, row)


def test_every_metric_that_a_guard_reads_is_in_the_catalogue():
    guards = Guards(GuardsConfig(), heads=[HARM, HELP])
    assert {watched.rule.name for watched in guards._watches} == set(GuardsConfig.model_fields) - {"enabled"}
    for watched in guards._watches:
        metric_for(watched.rule.metric)


def test_readings_tell_how_near_each_guard_is_once_it_has_seen_enough():
    guards = Guards(GuardsConfig())
    for step in range(1, 5):
        guards.observe(step, {"learner/kl_nats": -0.1})
    assert guards.readings() == []
    guards.observe(5, {"learner/kl_nats": -0.1})
    assert [(each.guard, round(each.value, 3), each.limit, each.fired) for each in guards.readings()] == [
        ("kl", 0.1, 0.5, False),
        ("own_answers", 0.1, 0.2, False),
    ]
    for step in range(6, 11):
        guards.observe(step, {"learner/kl_nats": -0.3})
    assert [(each.guard, each.fired) for each in guards.readings()] == [("kl", False), ("own_answers", True)]


def test_a_guard_that_ended_a_run_fires_again_in_the_resumed_one():
    config = GuardsConfig.model_validate({"kl": {"window": 1, "limit": 0.1}})
    guards = Guards(config)
    assert guards.observe(1, {"learner/kl_nats": 0.3})
    assert not guards.observe(2, {"learner/kl_nats": 0.3}), "once, until it has recovered"
    guards.rearm()
    assert [firing.guard for firing in guards.observe(3, {"learner/kl_nats": 0.3})] == ["kl"]

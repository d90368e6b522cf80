"""Prometheus names of the catalogue's metrics."""

import re

import pytest

from negalign_ray.errors import UnknownMetricError
from negalign_ray.events import EventKind
from negalign_ray.metrics import METRICS, TOTAL
from negalign_ray.monitoring.series import EVENTS, HISTOGRAMS, OF_RUNS, SERIES, Kind, labelled
from tests.pages import PAGES, ROOT, blocks

ALL = [*SERIES.values(), *OF_RUNS]


@pytest.mark.parametrize(
    ("key", "exported"),
    [
        ("learner/loss", "ray_negalign_learner_loss_nats"),
        ("learner/kl_nats", "ray_negalign_learner_kl_nats_per_token"),
        ("learner/best_token_nll_nats", "ray_negalign_learner_best_token_nll_nats_per_token"),
        ("learner/weight_frac", "ray_negalign_learner_weight_ratio"),
        ("learner/grad_norm", "ray_negalign_learner_grad_norm"),
        ("learner/lr", "ray_negalign_learner_lr"),
        ("learner/tokens", "ray_negalign_learner_tokens"),
        ("sampler/tokens_per_s", "ray_negalign_sampler_tokens_per_second"),
        ("sampler/busy_s", "ray_negalign_sampler_busy_seconds_total"),
        ("learner/step_s", "ray_negalign_learner_step_seconds"),
        ("conductor/orders", "ray_negalign_conductor_orders_total"),
        ("conductor/buffer_groups", "ray_negalign_conductor_buffer_groups"),
        ("behaviour/{behaviour}/num_groups", "ray_negalign_behaviour_groups"),
        ("behaviour/{behaviour}/margin_per_token_nats", "ray_negalign_behaviour_margin_nats_per_token"),
        ("scorer/{head}_sample_negative", "ray_negalign_scorer_sample_negative_score"),
    ],
)
def test_a_name_says_role_metric_and_unit_in_prometheus_words(key, exported):
    assert SERIES[key].exported == exported


def test_names_are_legal_and_no_two_are_alike():
    for series in ALL:
        assert re.fullmatch(r"negalign_[a-z]+(_[a-z0-9]+)+", series.name), series
        assert all(re.fullmatch(r"[a-z_]+", label) for label in series.labels), series
    exported = [series.exported for series in ALL]
    assert len(set(exported)) == len(exported) > 90


def test_seconds_and_totals_are_counters_and_nothing_else_is():
    for key, metric in METRICS.items():
        grows = metric.unit in ("s", TOTAL) and key not in HISTOGRAMS
        assert (SERIES[key].kind is Kind.COUNTER) == grows, key


def test_what_is_counted_so_far_is_a_total():
    for key, metric in METRICS.items():
        assert (" so far" not in metric.meaning) or metric.unit == TOTAL, key


def test_the_labels_of_a_series_are_what_its_key_leaves_open():
    assert labelled("learner/loss") == (SERIES["learner/loss"], {})
    assert labelled("scorer/toxicity_sample") == (SERIES["scorer/{head}_sample"], {"head": "toxicity"})
    key = "behaviour/Why? Me! a/b/margin_nats"
    assert labelled(key) == (SERIES["behaviour/{behaviour}/margin_nats"], {"behaviour": "Why? Me! a/b"})
    for series in SERIES.values():
        key = series.key.format(head="polite", behaviour="rude", name="mine")
        found, labels = labelled(key)
        assert found is series
        assert series.labels == ("run", *labels)
    with pytest.raises(UnknownMetricError, match="not in the catalogue"):
        labelled("learner/los")


EXPRESSIONS = [
    expression
    for page in PAGES
    for text in blocks(page, "text", "yaml", "promql")
    for expression in re.findall(r"^[^#\n].*ray_negalign_.*$", text, re.MULTILINE)
]


def test_every_series_that_the_documents_ask_for_is_exported_with_those_labels():
    assert len(EXPRESSIONS) >= 5
    known = {series.exported: series for series in ALL}
    for expression in EXPRESSIONS:
        for name, labels in re.findall(r"\b(ray_negalign_\w+)({[^}]*})?", expression):
            assert name in known, expression
            assert set(re.findall(r"(\w+)=", labels)) <= set(known[name].labels), expression
        for kinds in re.findall(r'kind=~?"([^"]*)"', expression):
            assert set(kinds.split("|")) <= counted_kinds(), "an event that reaches Prometheus"


def counted_kinds() -> set[str]:
    return set(re.findall(r"\w+", EVENTS.meaning.partition("by kind: ")[2]))


def test_an_event_is_counted_or_the_page_says_that_it_is_not():
    page = (ROOT / "docs" / "monitoring.md").read_text()
    told = page.partition("Events are those that the conductor writes: ")[2]
    written, _, rest = told.partition(". The\nlines ")
    assert set(re.findall(r"`(\w+)`", written)) == counted_kinds()
    assert set(re.findall(r"`(\w+)`", rest.partition(" of `events.jsonl`")[0])) == set(EventKind) - counted_kinds()


def test_the_alert_on_events_sees_the_first_one():
    """increase() of a counter that is born at 1 is 0: the expression also asks what was not there before."""
    alert = [expression for expression in EXPRESSIONS if "run_events_total" in expression]
    [series] = {found for text in alert for found in re.findall(r"ray_negalign_run_events_total{[^}]*}", text)}
    assert "".join(f"{line} " for line in alert).strip() == (
        f"({series} unless {series} offset 10m) > 0 or increase({series}[10m]) > 0"
    )

"""What the conductor tells Ray's metrics: with a fake of them, and on the endpoint of a real cluster."""

import pytest

from negalign_ray.actors.prometheus import PrometheusSink
from negalign_ray.events import EventKind
from negalign_ray.loops.watchdog import Activity
from negalign_ray.monitoring.series import Kind, Series


class FakeRay:
    """Remembers what Ray would export; as strict as Ray about labels and about counters that do not grow."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}
        self.made: list[str] = []

    def make(self, series: Series):
        self.made.append(series.name)

        def record(value: float, labels: dict[str, str]) -> None:
            assert tuple(labels) == series.labels
            assert all(isinstance(label, str) for label in labels.values())
            key = (series.exported, *labels.values())
            if series.kind is Kind.GAUGE:
                self.values[key] = value
            else:
                assert value > 0
                self.values[key] = self.values.get(key, 0.0) + value

        return record


@pytest.fixture
def ray_metrics() -> FakeRay:
    return FakeRay()


@pytest.fixture
def activities() -> list[Activity]:
    return []


@pytest.fixture
def sink(ray_metrics, activities) -> PrometheusSink:
    return PrometheusSink("mine", num_steps=50, activities=lambda: activities, make=ray_metrics.make)


def test_a_gauge_has_the_last_step_s_value_and_seconds_add_up(sink, ray_metrics):
    sink.write(1, {"learner/loss": 0.75, "learner/compute_s": 2.0, "learner/step_s": 3.0})
    sink.write(2, {"learner/loss": 0.5, "learner/compute_s": 1.5, "learner/step_s": 2.0})
    assert ray_metrics.values == {
        ("ray_negalign_learner_loss_nats", "mine"): 0.5,
        ("ray_negalign_learner_compute_seconds_total", "mine"): 3.5,
        ("ray_negalign_learner_step_seconds", "mine"): 5.0,
        ("ray_negalign_run_planned_steps", "mine"): 50,
    }
    assert len(ray_metrics.made) == 4, "each is made once"


def test_a_total_is_told_by_how_much_it_grew(sink, ray_metrics):
    for step, orders in enumerate((0, 8, 8, 20), start=1):
        sink.write(step, {"conductor/orders": orders, "learner/compute_s": 0.0})
    assert ray_metrics.values["ray_negalign_conductor_orders_total", "mine"] == 20
    assert "negalign_learner_compute_seconds" not in ray_metrics.made, "a counter that never grew does not exist"


def test_heads_and_behaviours_are_labels(sink, ray_metrics):
    sink.write(1, {"scorer/toxicity_sample": 0.25, "scorer/polite_sample": 0.5, "behaviour/Why? Me!/margin_nats": -1.5})
    assert ray_metrics.values["ray_negalign_scorer_sample_score", "mine", "toxicity"] == 0.25
    assert ray_metrics.values["ray_negalign_scorer_sample_score", "mine", "polite"] == 0.5
    assert ray_metrics.values["ray_negalign_behaviour_margin_nats", "mine", "Why? Me!"] == -1.5


def test_every_actor_s_time_at_work_and_version_are_series_of_their_own(sink, ray_metrics, activities):
    activities += [
        Activity("sampler", 0, "idle", 1.0, works=False, weight_version=3, busy_s=10.0),
        Activity("sampler", 1, "sample call", 1.0, works=True, weight_version=4, busy_s=12.0),
        Activity("learner", 0, "trains", 1.0, works=True, busy_s=0.0),
    ]
    sink.write(1, {})
    activities[:] = [Activity("sampler", 0, "idle", 1.0, works=False, weight_version=5, busy_s=15.0)]
    sink.write(2, {})
    assert ray_metrics.values == {
        ("ray_negalign_run_planned_steps", "mine"): 50,
        ("ray_negalign_role_busy_seconds_total", "mine", "sampler", "0"): 15.0,
        ("ray_negalign_role_busy_seconds_total", "mine", "sampler", "1"): 12.0,
        ("ray_negalign_role_weight_version", "mine", "sampler", "0"): 5,
        ("ray_negalign_role_weight_version", "mine", "sampler", "1"): 4,
    }


def test_events_are_counted_by_kind(sink, ray_metrics):
    for kind in (EventKind.FAULT, EventKind.REPLACE, EventKind.FAULT):
        sink.happened(kind)
    assert ray_metrics.values == {
        ("ray_negalign_run_events_total", "mine", "fault"): 2,
        ("ray_negalign_run_events_total", "mine", "replace"): 1,
    }

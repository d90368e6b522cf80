"""Ray's metrics endpoint, scraped as Prometheus does."""

import time
import urllib.request

import pytest
import ray

from negalign_ray.actors.prometheus import PrometheusSink
from negalign_ray.events import EventKind
from negalign_ray.loops.watchdog import Activity

PATIENCE_S = 90.0  # Ray's processes hand their metrics over every ten seconds


def exposed() -> dict[str, float]:
    """Series with their labels in the order of the alphabet -> value: 'ray_x_total{kind="fault",run="mine"}'."""
    from prometheus_client.parser import text_string_to_metric_families

    [node] = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
    ours = ("run", "role", "rank", "kind", "head", "behaviour", "le")
    return {
        f"{sample.name}{{{','.join(f'{k}={sample.labels[k]!r}' for k in ours if k in sample.labels)}}}": sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("ray_negalign_")
    }


@pytest.mark.real
@pytest.mark.slow
def test_a_scrape_of_ray_finds_the_documented_names_and_values(ray_cluster):
    activities = [Activity("sampler", 1, "idle", 1.0, works=False, weight_version=4, busy_s=12.5)]
    sink = PrometheusSink("scraped", num_steps=50, activities=lambda: activities)
    values = {"learner/loss": 0.75, "learner/step_s": 3.0, "learner/compute_s": 2.0, "conductor/orders": 8}
    sink.write(1, {**values, "scorer/polite_sample": 0.25, 'behaviour/Why? "Me"!/margin_nats': -1.5})
    sink.write(2, {**values, "learner/loss": 0.5, "conductor/orders": 20})
    sink.happened(EventKind.FAULT)
    wanted = {
        "ray_negalign_learner_loss_nats{run='scraped'}": 0.5,
        "ray_negalign_learner_step_seconds_count{run='scraped'}": 2.0,
        "ray_negalign_learner_step_seconds_bucket{run='scraped',le='2.5'}": 0.0,
        "ray_negalign_learner_step_seconds_bucket{run='scraped',le='5.0'}": 2.0,
        "ray_negalign_learner_compute_seconds_total{run='scraped'}": 4.0,
        "ray_negalign_conductor_orders_total{run='scraped'}": 20.0,
        "ray_negalign_scorer_sample_score{run='scraped',head='polite'}": 0.25,
        "ray_negalign_behaviour_margin_nats{run='scraped',behaviour='Why? \"Me\"!'}": -1.5,
        "ray_negalign_role_busy_seconds_total{run='scraped',role='sampler',rank='1'}": 12.5,
        "ray_negalign_role_weight_version{run='scraped',role='sampler',rank='1'}": 4.0,
        "ray_negalign_run_events_total{run='scraped',kind='fault'}": 1.0,
        "ray_negalign_run_planned_steps{run='scraped'}": 50.0,
    }
    deadline_s = time.monotonic() + PATIENCE_S
    found: dict[str, float] = {}
    while not wanted.items() <= found.items() and time.monotonic() < deadline_s:
        time.sleep(1.0)
        found = exposed()
    assert {name: found.get(name) for name in wanted} == wanted

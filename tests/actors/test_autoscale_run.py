"""Autoscaling of real samplers: one joins when learners wait for batches, one leaves when they do not."""

from collections.abc import Callable
from statistics import fmean

import pytest
import ray

from negalign_ray.actors.locate import namespace_of
from negalign_ray.actors.processes import conductor_name
from negalign_ray.actors.run import train
from negalign_ray.actors.status import Status
from negalign_ray.config import Config
from negalign_ray.events import Event, EventKind, read_events
from tests.actors.conftest import read_rows

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(600)]
PATIENCE = 2
AUTOSCALE = f"samplers.autoscale={{min: 1, max: 2, patience: {PATIENCE}, cooldown: 1, starving_frac: %s}}"


@pytest.fixture
def long_run(toy_config) -> Callable[..., Config]:
    return lambda *overrides: toy_config(
        "learners.steps=500", "guards.enabled=false", "checkpoints.every=0", *overrides, name="autoscaled"
    )


def train_until(num_samplers: int, config: Config) -> tuple[dict, list[dict], list[Event]]:
    """The summary, rows and scalings of a run that is stopped two steps after so many samplers serve."""
    since: list[int] = []

    def watch(phase: str, status: Status | None) -> None:
        if phase != "training" or status is None or status.replicas.get("samplers") != num_samplers:
            return
        since.append(status.step)
        if status.step >= since[0] + 2:
            name = config.run.name
            conductor = ray.get_actor(conductor_name(name), namespace=namespace_of(name))
            ray.get(conductor.stop.remote(), timeout=60)

    summary = train(config, on_status=watch)
    scalings = [event for event in read_events(config.run_dir) if event.kind is EventKind.SCALE]
    return summary, read_rows(config.run_dir / "metrics.jsonl"), scalings


def require_each_group_once(config: Config, summary: dict, rows: list[dict]) -> None:
    trained = [row["order_id"] for row in read_rows(config.run_dir / "samples" / "rank-0.jsonl")]
    assert len(trained) == len(set(trained)) == len(rows) * config.learners.groups_per_step
    orders = dict(summary["orders"])
    assert orders.pop("issued") == sum(orders.values())


def test_a_learner_that_starves_gets_one_more_sampler_which_takes_its_share(long_run):
    config = long_run(AUTOSCALE % 0.2, "sampling.max_new_tokens=150", "data.max_prompt_tokens=300")
    summary, rows, (decision, joined) = train_until(2, config)
    require_each_group_once(config, summary, rows)
    wait_fracs = [row["learner/pull_wait_s"] / row["learner/step_s"] for row in rows]
    measured = fmean(wait_fracs[decision.step - PATIENCE : decision.step])
    reason = f"learners waited for batches for {measured:.0%} of their time over the last 2 steps"
    assert decision.reason == f"samplers: 1 -> 2 ({reason})"
    assert measured > 0.2
    assert "joined after" in joined.reason
    assert (joined.role, joined.rank) == ("sampler", 1)
    assert [rows[0]["sampler/num"], rows[-1]["sampler/num"]] == [1, 2]


def test_a_sampler_leaves_when_the_learner_is_what_all_wait_for(long_run):
    config = long_run(
        *(AUTOSCALE % 0.99, "samplers.num=2", "sampling.max_new_tokens=2", "sampling.staleness=1"),
        *("learners.groups_per_step=12", "sampling.buffer_groups=24", "learners.micro_batch_tokens=1"),
    )
    summary, rows, (decision, left) = train_until(1, config)
    require_each_group_once(config, summary, rows)
    assert decision.reason.startswith("samplers: 2 -> 1 (samplers were busy for ")
    assert decision.reason.endswith("% of their time over the last 2 steps and the buffer was full)")
    assert "left after" in left.reason
    assert (left.role, left.rank) == ("sampler", 1)
    assert [rows[0]["sampler/num"], rows[-1]["sampler/num"]] == [2, 1]
    assert {row["conductor/reissued"] for row in rows} == {0}

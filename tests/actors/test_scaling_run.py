"""Runs whose samplers, scorers and references come and go: none of their groups is lost, and none is trained twice."""

from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group_table

from negalign_ray.actors.locate import namespace_of
from negalign_ray.actors.presence import actors_of
from negalign_ray.actors.processes import conductor_name
from negalign_ray.actors.resume import find_checkpoint
from negalign_ray.actors.run import train
from negalign_ray.actors.status import Status
from negalign_ray.config import Config
from negalign_ray.events import EventKind, read_events
from tests.actors.conftest import read_rows

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]
PAUSE = 2  # optimizer steps between a number that is reached and the next one that is asked for


class Script:
    """Asks for one set of numbers after the other, each when the one before serves, and then for the end of the run."""

    def __init__(self, name: str, *acts: dict[str, int]) -> None:
        self._name, self._acts, self._next = name, acts, 0
        self._since: int | None = None
        self.reached: list[int] = []  # steps at which each act was

    def __call__(self, phase: str, status: Status | None) -> None:
        if phase != "training" or status is None or self._next > len(self._acts):
            return
        wanted = self._acts[self._next - 1] if self._next else {}
        if wanted.items() <= status.replicas.items():
            if self._since is None:
                self._since = status.step
                self.reached += [status.step] if self._next else []
            if status.step >= self._since + PAUSE:
                self._go_on()

    def _go_on(self) -> None:
        conductor = ray.get_actor(conductor_name(self._name), namespace=namespace_of(self._name))
        if self._next == len(self._acts):
            ray.get(conductor.stop.remote(), timeout=60)
        else:
            for role, num in self._acts[self._next].items():
                ray.get(conductor.scale.remote(role, num), timeout=60)
        self._next, self._since = self._next + 1, None


def play(config: Config, *acts: dict[str, int]) -> tuple[dict, list[dict], list[int]]:
    script = Script(config.run.name, *acts)
    summary = train(config, on_status=script)
    assert len(script.reached) == len(acts), "the run was long enough for all that was asked"
    return summary, read_rows(config.run_dir / "metrics.jsonl"), script.reached


def require_each_group_once(run_dir: Path, summary: dict, num_steps: int) -> None:
    trained = [group["order_id"] for path in run_dir.glob("samples/rank-*.jsonl") for group in read_rows(path)]
    assert len(trained) == len(set(trained)) == 4 * num_steps, "four groups a step, none twice"
    orders = dict(summary["orders"])
    assert orders["trained"] == len(trained)
    assert orders.pop("issued") == sum(orders.values()), "none lost: every order has an end"


def moves(run_dir: Path, word: str) -> list[tuple[str, int]]:
    return sorted((e.role, e.rank) for e in read_events(run_dir) if e.kind is EventKind.SCALE and word in e.reason)


@pytest.fixture
def long_run(toy_config) -> Callable[..., Config]:
    """Until its script ends it."""
    return lambda *overrides: toy_config(
        *("learners.steps=500", "guards.enabled=false", "learners.mismatch_every=1", "checkpoints.every=0", *overrides),
        name="elastic",
    )


@pytest.mark.timeout(900)
def test_samplers_scorers_and_references_come_and_go_and_no_group_is_lost_or_trained_twice(long_run):
    config = long_run()
    more = {"samplers": 3, "scorers": 2, "references": 2}
    summary, rows, reached = play(config, more, {"samplers": 1, "scorers": 1, "references": 1})
    require_each_group_once(config.run_dir, summary, len(rows))
    numbers = [row["sampler/num"] for row in rows]
    assert (numbers[0], max(numbers), numbers[-1]) == (1, 3, 1)
    assert set(numbers[reached[0] : reached[0] + PAUSE]) == {3}
    assert {row["sampler/staleness_steps"] for row in rows} == {0.0}, "each answer is of the version that trains on it"
    assert max(row["learner/mismatch_nats"] for row in rows) < 1e-3, "and of its weights, of late samplers too"
    assert {row["conductor/reissued"] for row in rows} == {0}, "nothing was asked twice"
    came = [("reference", 1), ("sampler", 1), ("sampler", 2), ("scorer", 1)]
    assert moves(config.run_dir, "joined after") == moves(config.run_dir, "left after") == came
    assert not actors_of(config.run.name)
    left = [g for g in placement_group_table().values() if g["name"].startswith("elastic@") and g["state"] != "REMOVED"]
    assert not left, "and no room is held"


@pytest.mark.timeout(900)
def test_with_orders_under_way_all_the_time_samplers_come_and_go_likewise(long_run):
    config = long_run("sampling.staleness=2", "sampling.buffer_groups=16", "samplers.orders_per_call=1")
    summary, rows, _ = play(config, {"samplers": 2}, {"samplers": 1})
    require_each_group_once(config.run_dir, summary, len(rows))
    assert max(row["sampler/staleness_steps"] for row in rows) <= 2
    assert max(row["learner/mismatch_nats"] for row in rows) > 0
    assert {row["conductor/samplers_replaced"] for row in rows} == {0}

    again = find_checkpoint(config.run_dir)
    assert again.config.samplers.num == 1
    assert again.checkpoint.step == len(rows)


@pytest.mark.timeout(900)
def test_a_vllm_sampler_joins_with_the_current_weights_and_a_resumed_run_keeps_it(long_run):
    config = long_run("samplers.engine=vllm")
    summary, rows, _ = play(config, {"samplers": 2})
    require_each_group_once(config.run_dir, summary, len(rows))
    assert rows[-1]["sampler/num"] == 2
    assert max(row["learner/mismatch_nats"] for row in rows) < 1e-3
    assert find_checkpoint(config.run_dir).config.samplers.num == 2

"""A weight update that arrives damaged, or never: no sampler serves other weights than those announced."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import ray

from negalign_ray.actors.fleet import RayFleet
from negalign_ray.actors.plan import Plan, make_plan
from negalign_ray.actors.wiring import make_orders, make_rollout
from negalign_ray.engines.weights import WeightBundle, read_safetensors
from negalign_ray.errors import WeightUpdateError
from negalign_ray.events import Event, EventKind
from negalign_ray.loops.rollout import Rollout
from negalign_ray.records import WeightReceipt
from tests.faults.harness import Scene, freeze
from tests.toy import make_toy_model

pytestmark = [
    *(pytest.mark.real, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(400)),
    pytest.mark.parametrize("engine", ["transformers", "vllm"]),
]


class FaultyNetwork(RayFleet):
    """The first weights that it carries meet an accident; everything else is the real fleet."""

    def __init__(self, plan: Plan, *, accident: Callable[[Any], Any], **more: Any) -> None:
        super().__init__(plan, **more)
        self._accident: Callable[[Any], Any] | None = accident

    async def load_weights(self, rank: int, weights: Any, version: int) -> WeightReceipt:
        if self._accident is not None:
            accident, self._accident = self._accident, None
            weights = accident(weights)
        return await super().load_weights(rank, weights, version)


def with_one_bit_changed(weights: Any) -> Any:
    bundle: WeightBundle = ray.get(weights)
    damaged = bundle.buffer.copy()
    damaged[len(damaged) // 2] ^= 1
    return ray.put(replace(bundle, buffer=damaged))


@pytest.fixture
def learned(tmp_path) -> WeightBundle:
    """Other weights than those that every sampler starts with."""
    folder = make_toy_model(tmp_path / "learned", seed=1)
    return WeightBundle.from_tensors(read_safetensors(folder, tied=True), version=1)


@pytest.fixture
def stage(toy_config, engine) -> Iterator[Callable[..., tuple[Rollout, Scene, list[Event]]]]:
    """The conductor's loop with real roles, here in the test; a learner is not needed for weights."""
    fleets = []

    def build(accident: Callable[[Any, Scene], Any], *overrides: str):
        config = toy_config(f"samplers.engine={engine}", "scorers.heads=[]", *overrides)
        plan, scene, seen = make_plan(config), Scene(config), []
        fleet = FaultyNetwork(plan, accident=lambda weights: accident(weights, scene), record=seen.append)
        fleets.append(fleet)
        fleet.reserve()
        fleet.wait_until_ready()
        chat = plan.chat()
        orders = make_orders(plan, context_ids=lambda prompt, text: chat.prompt_ids(prompt.messages, text))
        return make_rollout(plan, fleet=fleet, orders=orders, record=seen.append), scene, seen

    yield build
    for fleet in fleets:
        fleet.kill()


async def publish_then_sample(rollout: Rollout, bundle: WeightBundle) -> tuple[set[int | None], float]:
    """(versions that wrote the groups of step 1, seconds that the update took)."""
    await rollout.start()
    await rollout.pull(0, timeout_s=120)
    started = time.monotonic()
    await rollout.publish(1, ray.put(bundle))
    seconds = time.monotonic() - started
    await rollout.trained(0)
    batch = await rollout.pull(1, timeout_s=120)
    assert batch is not None
    versions = {handle.card.weight_version for handle in batch.handles}
    await rollout.close()
    return versions, seconds


def test_a_sampler_whose_weights_arrive_damaged_is_replaced_by_one_with_the_true_ones(stage, learned, engine, report):
    rollout, scene, seen = stage(lambda weights, _: with_one_bit_changed(weights))
    versions, seconds = asyncio.run(publish_then_sample(rollout, learned))
    assert versions == {1}
    fault = next(event for event in seen if event.kind is EventKind.FAULT)
    assert "checksum" in fault.reason
    assert f"{learned.checksum:016x}" in fault.reason
    assert rollout.counts["samplers_replaced"] == 1
    report("weights arrive with one bit changed", ended="goes on", seconds=seconds, config=scene.config)


def test_a_sampler_that_an_update_never_reaches_is_replaced_after_the_deadline(stage, learned, engine, report):
    def lose(weights: Any, scene: Scene) -> Any:
        freeze(scene.pid("sampler-0"))
        return weights

    rollout, scene, seen = stage(lose, "deadlines.weights_s=20")
    versions, seconds = asyncio.run(publish_then_sample(rollout, learned))
    assert versions == {1}
    assert any("no answer within deadlines.weights_s=20 s" in event.reason for event in seen)
    fault = "weights never arrive; deadlines.weights_s=20"
    report(fault, ended="goes on", seconds=seconds, config=scene.config)


def test_weights_that_are_damaged_at_their_source_end_the_run_with_both_checksums(stage, learned, engine):
    rollout, *_ = stage(lambda weights, _: weights)
    damaged = replace(learned, checksum=learned.checksum ^ 1)
    with pytest.raises(WeightUpdateError, match=rf"sampler\[0\].*{learned.checksum:016x}.*{damaged.checksum:016x}"):
        asyncio.run(publish_then_sample(rollout, damaged))

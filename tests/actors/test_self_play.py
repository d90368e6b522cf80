"""Self-play on the real stack: the guide, and references that follow the policy's snapshots; only the model is tiny."""

import asyncio
import math
from collections.abc import Callable

import pytest
import ray

from negalign_ray.actors.fleet import RayFleet
from negalign_ray.actors.plan import make_plan
from negalign_ray.actors.run import train
from negalign_ray.config import LATENT_DISTANCE, Config
from negalign_ray.engines.frozen import FrozenModel
from negalign_ray.engines.weights import WeightBundle, read_safetensors
from negalign_ray.errors import RoleError
from negalign_ray.records import Group
from tests.actors.conftest import read_rows
from tests.toy import make_toy_model

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture
def self_play(toy_config, tmp_path) -> Callable[..., Config]:
    """2 iterations of 2 steps of 4 prompts, on pairs."""
    rows = "".join(
        f'{{"prompt": "How is day {i}?", "chosen": "Fine, thank you.", "rejected": "Go away."}}\n' for i in range(24)
    )
    (tmp_path / "pairs.jsonl").write_text(rows)

    def make(*overrides: str) -> Config:
        return toy_config(
            'method={"name": "ld_align"}',
            f"data.path={tmp_path / 'pairs.jsonl'}",
            "scorers.heads=[]",
            "sampling.schedule=interval",
            "sampling.refresh_every=2",
            "sampling.buffer_groups=8",
            "sampling.instructions=null",
            "sampling.num_samples=1",
            "references.follow=snapshot",
            "learners.steps=4",
            "guide={width: 16, heads: 2, layers: 1, latent_size: 4, steps: 4, groups_per_step: 4}",
            *overrides,
        )

    return make


@pytest.mark.slow
def test_two_iterations_of_ld_align_measure_distances_report_the_control_and_follow_the_snapshots(self_play):
    config = self_play()
    train(config)
    rows = read_rows(config.run_dir / "metrics.jsonl")
    assert all(math.isfinite(row["learner/loss"]) for row in rows)
    assert [row["sampler/staleness_steps"] for row in rows] == [0.0, 1.0, 0.0, 1.0]
    for first in (rows[0], rows[2]):  # th = ref: L5, and nothing has moved from the snapshot
        assert first["learner/positive_logratio_nats"] == pytest.approx(0, abs=1e-3)
        assert first["learner/sample_logratio_nats"] == pytest.approx(0, abs=1e-3)
        assert first["learner/loss"] == pytest.approx(math.log(2) * first["learner/distance_weight"], rel=1e-3)
        assert first["guide/pairs"] == 8
        assert first["guide/gain_nats"] == pytest.approx(first["guide/control_nll_nats"] - first["guide/nll_nats"])
    for second in (rows[1], rows[3]):
        assert second["learner/positive_logratio_nats"] > 0.01
        assert "guide/pairs" not in second
    assert not any(key.startswith("scorer/latent") for row in rows for key in row)

    groups = read_rows(config.run_dir / "samples" / "rank-0.jsonl")
    samples = [r for group in groups for r in group["responses"] if r["role"] == "sample"]
    assert len(samples) == 16
    assert all(sample["rewards"][LATENT_DISTANCE] > 0 for sample in samples)


@pytest.mark.slow
def test_a_reference_that_died_comes_back_with_the_snapshot_and_an_unconfirmed_one_prices_nothing(
    self_play, toy_model, tmp_path
):
    config = self_play("method.weight_mode=constant")
    plan = make_plan(config)
    folder = make_toy_model(tmp_path / "snapshot", seed=1)
    bundle = WeightBundle.from_tensors(list(read_safetensors(folder, tied=True)), version=2)
    settings = {"dtype": "float32", "threads": 1, "micro_batch_tokens": 4096, "max_row_tokens": 512}
    initial, snapshot = (FrozenModel(path, **settings) for path in (toy_model, folder))
    prompt = plan.data.train[0]
    group = Group(0, prompt, prompt.responses)

    async def scenario() -> None:
        async def prices() -> list[float]:
            held = await fleet.hold([group])
            priced = ray.get((await fleet.price(held.handles)).handles[0].ref)
            return [response.ref_logprobs["rpos"] for response in priced.responses]

        assert await prices() == pytest.approx(initial.response_logprobs([group])[0], abs=1e-3)
        assert await fleet.follow(ray.put(bundle), 2) > 0
        expected = pytest.approx(snapshot.response_logprobs([group])[0], abs=1e-3)
        assert await prices() == expected, "the prices of the initial model are forgotten"
        ray.kill(fleet._references[0].actors[0])
        assert await prices() == expected
        with pytest.raises(RoleError, match="asked for prices of v7, but it holds v2"):
            ray.get(fleet._references[0].actors[0].price.remote(group, version=7))

    fleet = RayFleet(plan)
    try:
        fleet.reserve()
        fleet.wait_until_ready()
        asyncio.run(scenario())
    finally:
        fleet.kill()

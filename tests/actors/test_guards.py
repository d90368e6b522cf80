"""A guard ends a run on the real stack: cleanly, with the model of the step at which it fired."""

import json

import pytest

from negalign_ray.actors.run import train
from tests.actors.conftest import read_rows

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ray_cluster")]


@pytest.mark.slow
def test_a_guard_that_fires_ends_the_run_with_its_model_and_says_which_value_did_it(toy_config):
    config = toy_config("learners.steps=50", "learners.num=2", "guards.kl.limit=0.0", "guards.kl.window=2")
    summary = train(config)
    rows = read_rows(config.run_dir / "metrics.jsonl")
    stopped_by = summary["stopped_by"]
    assert (stopped_by["guard"], stopped_by["metric"], stopped_by["step"]) == ("kl", "learner/kl_nats", 2)
    assert stopped_by["value"] == pytest.approx(abs(rows[0]["learner/kl_nats"] + rows[1]["learner/kl_nats"]) / 2)
    assert summary["steps"] == len(rows) == 2
    assert (config.run_dir / "model" / "model.safetensors").exists()
    assert json.loads((config.run_dir / "summary.json").read_text())["stopped_by"] == stopped_by
    assert rows[0]["learner/kl_nats"] == pytest.approx(0.0, abs=1e-4), "before the first update"
    assert rows[0]["learner/benign_logprob_nats"] < 0.0
    assert "learner/benign_logprob_nats" not in rows[1]
    assert 0.0 <= rows[0]["sampler/repetition_frac"] <= 1.0
    assert rows[0]["sampler/entropy_nats"] > 0.0
    assert 0.0 < rows[0]["sampler/distinct_openings_frac"] <= 1.0

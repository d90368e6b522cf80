"""A run directory, three steps into its run."""

import json
import os

import pytest

from negalign_ray.settings import dump_config, load_config

SETTINGS = ("learners.steps=10", "learners.groups_per_step=4", "samplers.num=2", "sampling.buffer_groups=16")


def row(step: int) -> str:
    values = {
        "learner/loss": 1.0 / step,
        "learner/tokens": 400,
        "learner/pull_wait_s": 8.0,
        "sampler/busy_s": 15.0,
        "sampler/tokens_per_s": 20.0,
        "sampler/version": step - 1,
        "conductor/buffer_groups": 7,
        "conductor/in_flight_groups": 3,
    }
    return json.dumps({"step": step, "time_s": 10.0 * step, **values}) + "\n"


@pytest.fixture
def run_dir(tmp_path):
    """Three of ten steps, ten seconds each."""
    folder = tmp_path / "mine"
    (folder / "logs").mkdir(parents=True)
    config = load_config(preset="quickstart", overrides=[*SETTINGS, "run.name=mine", f"run.dir={tmp_path}"])
    (folder / "config.yaml").write_text(dump_config(config))
    (folder / "metrics.jsonl").write_text("".join(map(row, (1, 2, 3))))
    for name in ("conductor-0", "learner-0", "sampler-0", "sampler-1"):
        (folder / "logs" / f"{name}.log").touch()
        os.utime(folder / "logs" / f"{name}.log", (0, 990))
    os.utime(folder / "metrics.jsonl", (0, 995))
    return folder

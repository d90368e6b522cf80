"""What the driver asks of the conductor, and for how long it waits; the conductor is a fake."""

import threading
import time
from dataclasses import dataclass
from typing import Any

import pytest
import ray

from negalign_ray.actors.run import _Run, ignore_status
from negalign_ray.config import Config
from negalign_ray.errors import StallError
from negalign_ray.records import SamplingSpec
from negalign_ray.settings import load_config


@dataclass(frozen=True)
class FakePlan:
    """All of a plan that is looked at."""

    config: Config


def make_config(folder, *overrides: str) -> Config:
    config = load_config(overrides=[f"run.dir={folder}", "evaluation.enabled=false", *overrides])
    (config.run_dir / "logs").mkdir(parents=True)
    return config


class Recorded(_Run):
    """Its calls are written down, and answered with None."""

    def __init__(self, config: Config) -> None:
        super().__init__(FakePlan(config), ignore_status, None, None, threading.Event())
        self.calls: dict[str, float | None] = {}

    def _call(self, method: str, *arguments: Any, deadline_s: float | None = None, explain: bool = True) -> Any:
        self.calls[method] = deadline_s


def test_an_evaluation_is_waited_for_as_long_as_the_samplers_may_take_to_recover(tmp_path):
    config = make_config(tmp_path, "deadlines.weights_s=1000")
    run = Recorded(config)
    run._generate([], SamplingSpec(8))
    assert run.calls["generate"] == config.deadlines.answers_s == 3 * (600 + 20 + 300 + 1000)


@ray.remote(num_cpus=0)
class Asleep:
    def generate(self) -> None:
        time.sleep(60)

    def activities(self) -> None:
        """Its turn never comes."""


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_conductor_that_does_not_answer_outside_of_training_leaves_its_trace_too(tmp_path):
    config = make_config(tmp_path)
    run = _Run(FakePlan(config), ignore_status, None, None, threading.Event())
    run._conductor = Asleep.remote()
    with pytest.raises(StallError, match=r"^conductor\[0\]: nothing has moved for 1 s \(no answer to `generate`"):
        run._call("generate", deadline_s=1.0)
    assert "it does not answer" in (config.run_dir / "logs" / "stall.log").read_text()
    with pytest.raises(StallError, match="no answer to `generate` within 1 s"):
        run._call("generate", deadline_s=1.0, explain=False)

"""The driver's process is killed or terminated: nothing of the run stays behind, and it goes on from the checkpoint."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest
import ray
import torch
from ray.util.state import list_placement_groups
from safetensors.torch import load_file

from negalign_ray.actors.resume import find_checkpoint
from negalign_ray.actors.run import resume, train
from negalign_ray.actors.stall import find_processes
from negalign_ray.config import Config
from negalign_ray.settings import dump_config
from tests.actors.conftest import read_rows
from tests.faults.harness import (
    GIVE_UP_S,
    POLL_S,
    both_engines,
    gone_within,
    kill,
    require_each_group_trained_once,
    require_sound,
)

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(600)]
LONG_RUN = ("learners.steps=500", "guards.enabled=false", "checkpoints.every=1")
TWENTY_STEPS = ("learners.steps=20", "guards.enabled=false", "checkpoints.every=1")


@pytest.fixture
def launch(tmp_path) -> Iterator[Callable[..., subprocess.Popen]]:
    """`negalign-ray train` in a process of its own, with a cluster of its own unless `address` names one.

    `arguments`: instead of those for a new run of that configuration.
    """
    started = []

    def start(config: Config, *arguments: str, address: str | None = None) -> subprocess.Popen:
        file = tmp_path / "config.yaml"
        file.write_text(dump_config(config))
        environment = {key: value for key, value in os.environ.items() if address or not key.startswith("RAY_")}
        environment |= {"RAY_ADDRESS": address} if address else {}
        arguments = arguments or ("--config", str(file))
        command = [sys.executable, "-m", "negalign_ray.cli", "train", *arguments]
        with (tmp_path / "output.txt").open("w") as output:
            started.append(subprocess.Popen(command, stdout=output, stderr=output, env=environment))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_for_rows(config: Config, num: int, process: subprocess.Popen) -> None:
    path = config.run_dir / "metrics.jsonl"
    deadline_s = time.monotonic() + GIVE_UP_S
    while not (path.is_file() and len(path.read_text().splitlines()) >= num):
        assert process.poll() is None, "the run ended by itself"
        assert time.monotonic() < deadline_s, "the run does not come to its steps"
        time.sleep(POLL_S)


def go_on(config: Config) -> tuple[Config, dict]:
    again = find_checkpoint(config.run_dir)
    assert again.checkpoint.step >= 1
    return again.config, resume(again)


@both_engines
def test_a_driver_that_is_killed_leaves_nothing_of_its_run_on_a_shared_cluster(
    toy_config, ray_cluster, launch, report, engine
):
    config = toy_config(*TWENTY_STEPS, "learners.num=2", f"samplers.engine={engine}")
    address = ray.get_runtime_context().gcs_address
    driver = launch(config, address=address)
    wait_for_rows(config, 3, driver)
    pids = [process.pid for process in find_processes(config.run_dir)]
    assert len(pids) == 6, "conductor, sampler, scorer, reference, two learners"
    kill(driver.pid)
    killed_s = time.monotonic()
    driver.wait()
    assert gone_within(pids, seconds=90) == []
    seconds = time.monotonic() - killed_s
    left = []
    while time.monotonic() < killed_s + 90:
        left = [group for group in list_placement_groups(address=address) if group.state != "REMOVED"]
        if not left:
            break
        time.sleep(1)
    assert left == []
    again, summary = go_on(config)
    require_sound(again, summary)
    fault = "kill -9 of the driver on a shared cluster"
    report(fault, ended="all roles ended, resumed", seconds=seconds, config=config)


def test_a_driver_that_is_killed_and_its_run_resumed_ends_with_the_weights_of_an_undisturbed_run(
    toy_config, ray_cluster, launch, tmp_path
):
    settings = ("learners.steps=12", "checkpoints.every=1", "guards.enabled=false")
    straight = toy_config(*settings, name="straight")
    train(straight)
    config = toy_config(*settings)
    address = ray.get_runtime_context().gcs_address
    driver = launch(config, address=address)
    wait_for_rows(config, 3, driver)
    kill(driver.pid)
    driver.wait()
    assert not (config.run_dir / "model").exists()
    assert gone_within([process.pid for process in find_processes(config.run_dir)], seconds=90) == []
    resumed = launch(config, "--resume", str(config.run_dir), address=address)
    assert resumed.wait(timeout=200) == 0, (tmp_path / "output.txt").read_text()
    require_each_group_trained_once(config, steps=12)
    ends = [load_file(each.run_dir / "model" / "model.safetensors") for each in (straight, config)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@both_engines
def test_a_driver_that_is_killed_takes_its_own_cluster_with_it(toy_config, launch, report, engine):
    config = toy_config(*LONG_RUN, f"samplers.engine={engine}")
    driver = launch(config)
    wait_for_rows(config, 2, driver)
    pids = [child.pid for child in psutil.Process(driver.pid).children(recursive=True)]
    assert len(pids) > 5
    kill(driver.pid)
    killed_s = time.monotonic()
    driver.wait()
    assert gone_within(pids, seconds=90) == []
    seconds = time.monotonic() - killed_s
    report("kill -9 of the driver with its own cluster", ended="all ended", seconds=seconds, config=config)


@both_engines
def test_sigterm_ends_the_run_after_the_step_under_way_with_its_model_and_a_checkpoint(
    toy_config, launch, tmp_path, report, engine
):
    config = toy_config(
        *("learners.steps=500", "guards.enabled=false", "checkpoints.every=0"),
        *("evaluation.enabled=true", "evaluation.num_prompts=2", f"samplers.engine={engine}"),
    )
    driver = launch(config)
    wait_for_rows(config, 2, driver)
    driver.send_signal(signal.SIGTERM)
    sent_s = time.monotonic()
    while not (config.run_dir / "manifest.json").exists():
        assert driver.poll() is None or driver.returncode == 0, (tmp_path / "output.txt").read_text()
        time.sleep(POLL_S)
    seconds = time.monotonic() - sent_s
    driver.send_signal(signal.SIGTERM)  # an impatient scheduler: it changes nothing
    assert driver.wait(timeout=200) == 0, (tmp_path / "output.txt").read_text()
    summary = json.loads((config.run_dir / "summary.json").read_text())
    done = summary["steps"]
    assert 2 <= done < 500
    assert summary["after"], "the table is there as well"
    assert len(read_rows(config.run_dir / "metrics.jsonl")) == done
    assert (config.run_dir / "model" / "model.safetensors").is_file()
    require_each_group_trained_once(config, steps=done)
    assert find_checkpoint(config.run_dir).checkpoint.step == done
    report("SIGTERM", ended="stopped, checkpoint", seconds=seconds, config=config, summary=summary)


def test_sigterm_before_training_ends_the_command_with_143(toy_config, launch, tmp_path):
    config = toy_config("learners.steps=500", "guards.enabled=false")
    driver = launch(config)
    log = config.run_dir / "logs" / "conductor-0.log"
    deadline_s = time.monotonic() + GIVE_UP_S
    while not log.exists():
        assert driver.poll() is None, (tmp_path / "output.txt").read_text()
        assert time.monotonic() < deadline_s
        time.sleep(POLL_S)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=120) == 143
    assert "Terminated." in (tmp_path / "output.txt").read_text().splitlines()

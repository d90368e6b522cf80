"""Ctrl-C in a terminal: the whole process group gets SIGINT, and the run still ends with a model and a summary."""

import json
import os
import signal
import subprocess
import sys

import pytest

from negalign_ray.settings import dump_config

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.mark.timeout(400)
def test_ctrl_c_ends_after_the_step_under_way_and_keeps_what_was_learned(toy_config, tmp_path):
    config = toy_config("learners.steps=500", "guards.enabled=false")
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(config))
    command = [sys.executable, "-m", "negalign_ray.cli", "train", "--config", str(file)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )
    assert process.stderr is not None
    shown = []
    for line in process.stderr:
        shown.append(line)
        if "/500  loss" in line:  # the first step that the terminal shows
            os.killpg(process.pid, signal.SIGINT)
            break
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, "".join(shown) + err
    summary = json.loads((config.run_dir / "summary.json").read_text())
    assert 1 <= summary["steps"] < 500
    assert (config.run_dir / "model" / "model.safetensors").exists()
    rows = (config.run_dir / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == summary["steps"]
    assert str(config.run_dir / "model") in out.replace("\n", "")

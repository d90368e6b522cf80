"""`make` does its own set-up, says what it does, and returns at once when nothing has changed."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SETUP = ROOT / "scripts" / "setup.py"


def load_setup():
    spec = importlib.util.spec_from_file_location("negalign_setup", SETUP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


setup = load_setup()


def dry_make(*arguments: str) -> str:
    command = ["make", "--dry-run", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("target", ["quickstart", "test", "test-all", "lint", "docs"])
def test_every_target_does_its_own_set_up_first(target):
    assert "scripts/setup.py" in dry_make(target).splitlines()[0]


def test_the_quickstart_trains_its_preset():
    assert ".venv/bin/negalign-ray train --preset quickstart" in dry_make("quickstart")


def test_tests_leave_out_what_needs_a_gpu_and_only_make_test_the_slow_ones():
    assert '-m "not slow and not gpu"' in dry_make("test")
    assert '-m "not gpu"' in dry_make("test-all")


def test_ci_calls_make_test_and_nothing_more():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines == ["#!/usr/bin/env bash", "set -euo pipefail", 'cd "$(dirname "$0")/.."', "make test"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_variables_reach_the_set_up():
    line = dry_make("setup", "PYTHON=python3.12", "EXTRAS=gpu,dev", "TORCH_INDEX=https://index.example/cpu")
    assert '"python3.12" scripts/setup.py' in line
    assert '--extras "gpu,dev" --torch-index "https://index.example/cpu"' in line


def test_the_pinned_torch_is_asked_for_as_a_cpu_build():
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+(\+cpu)?", setup.cpu_torch())
    assert setup.cpu_torch().endswith("+cpu") == (sys.platform == "linux")


@pytest.mark.parametrize("version", [(3, 10), (3, 13), (2, 7)])
def test_a_python_out_of_range_is_refused_with_the_remedy(version):
    with pytest.raises(setup.StageError, match=r"3\.11 or 3\.12 is needed.*make setup PYTHON="):
        setup.check_python(version)
    setup.check_python((3, 11))
    setup.check_python((3, 12))


def test_a_failed_stage_shows_the_end_of_its_output_and_the_remedy(tmp_path, capfd):
    stages = setup.Stages(tmp_path / "setup.log", 2)
    stages.run("first", sys.executable, "-c", "print('noise')", remedy="")
    with pytest.raises(setup.StageError, match=r"(?s)the reason.*second failed\. Do this\."):
        stages.run("second", sys.executable, "-c", "import sys; sys.exit('the reason')", remedy="Do this.")
    lines = capfd.readouterr().out.splitlines()
    assert [re.sub(r"\d+ s$", "N s", line) for line in lines] == [
        "set-up 1/2: first ... N s",
        "set-up 2/2: second ... FAILED",
    ]
    assert "noise" in (tmp_path / "setup.log").read_text()


def test_a_retry_is_announced_and_reported(tmp_path, capfd):
    stages = setup.Stages(tmp_path / "setup.log", 1)
    fails, works = (sys.executable, "-c", "raise SystemExit(1)"), (sys.executable, "-c", "")
    assert stages.run("torch", *fails, remedy="", retry=("asking elsewhere", works))
    assert re.fullmatch(r"set-up 1/1: torch \.\.\. asking elsewhere \.\.\. \d+ s\n", capfd.readouterr().out)
    assert not stages.run("torch", *works, remedy="", retry=("asking elsewhere", fails))


def test_the_stamp_changes_with_extras_and_place():
    stamp = setup.stamp_of(Path("/a/.venv"), "cpu,dev")
    assert stamp == setup.stamp_of(Path("/a/.venv"), "cpu,dev")
    assert stamp != setup.stamp_of(Path("/a/.venv"), "gpu,dev")
    assert stamp != setup.stamp_of(Path("/b/.venv"), "cpu,dev")


def test_a_ready_environment_is_left_alone_within_a_second(tmp_path):
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").touch()
    command = [sys.executable, str(SETUP), "--venv", str(venv)]
    show_stamp = (
        f"import sys, json, pathlib; sys.path.insert(0, {str(SETUP.parent)!r}); import setup\n"
        f"print(json.dumps(setup.stamp_of(pathlib.Path({str(venv)!r}), 'cpu,dev')))"
    )
    stamp = subprocess.run([sys.executable, "-c", show_stamp], capture_output=True, text=True, check=True).stdout
    (venv / ".ready").write_text(stamp)
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert time.monotonic() - start < 5  # 0.1 s on an idle machine
    assert done.stdout == ""
    assert json.loads((venv / ".ready").read_text()) == json.loads(stamp)


def test_broken_libraries_are_told_from_absent_and_working_ones(tmp_path):
    # `pip` itself works and stays; `no-such-library` is absent: neither may be uninstalled.
    command = [sys.executable, "-c", setup._KEEP_ONLY_WORKING.replace("import torch, ", "import "), "pip", "no-such"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == ""


def test_an_environment_of_another_interpreter_or_place_is_not_reused(tmp_path):
    wanted = setup.stamp_of(tmp_path, "cpu,dev")
    venv = Path(sys.prefix)
    assert setup.usable(venv, {}, wanted), "an environment without a stamp is brought up to date"
    assert setup.usable(venv, {**wanted, "inputs": "older"}, wanted)
    assert not setup.usable(venv, {**wanted, "python": "another"}, wanted)
    assert not setup.usable(venv, {**wanted, "venv": "/elsewhere"}, wanted)
    assert not setup.usable(tmp_path, {}, wanted), "no interpreter in it"

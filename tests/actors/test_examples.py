"""The examples do what they say: part by part, the first as a run, and each in a process of its own."""

import os
import runpy
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from negalign_ray import open_run
from negalign_ray.config import CustomConfig, DataConfig, HeadConfig
from negalign_ray.data.chat import load_chat
from negalign_ray.data.load import load_prompts
from negalign_ray.methods.custom_check import check_method
from negalign_ray.rewards import build_head
from negalign_ray.user_code import load_target
from tests.actors.conftest import TOY, read_rows

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py"))}
RUNS = [name for name in EXAMPLES if name != "05_reward_service"]
EVALUATED = ("evaluation.enabled=true", "evaluation.num_prompts=3", "evaluation.num_benign=3", "learners.steps=2")


def part(name: str, of: str):
    return load_target(f"{EXAMPLES[of]}:{name}", where="example")


def test_the_reward_function_prefers_warm_answers():
    warmth = part("warmth", "02_reward_function")
    warm, neutral, cold = warmth([("Hi", "Thanks, well done."), ("Hi", "I see."), ("Hi", "What a silly idea.")])
    assert warm > neutral == 0 > cold


def test_the_custom_method_keeps_the_contract_of_a_loss():
    check_method(CustomConfig(target=f"{EXAMPLES['03_custom_method']}:HINGE", settings={"margin": 10}))


def test_the_moderation_log_becomes_sound_rows(toy_model, tmp_path):
    from negalign_ray.api.inputs import data_path

    rows, log = part("rows", "04_custom_data"), part("LOG", "04_custom_data")
    path = data_path(rows([*log, {"turns": [("user", "Hi")], "reply": "Hello", "flags": []}]), run_dir=tmp_path)
    config = DataConfig(path=path, max_prompt_tokens=600, max_response_tokens=600, heldout_frac=0.25)
    data = load_prompts(config, load_chat(toy_model))
    assert len(data.train) + len(data.heldout) == len(log) == 16
    assert {prompt.behaviour for prompt in data.train} == {"insult", "contempt"}


def test_the_reward_service_speaks_the_protocol_of_the_http_head():
    server = ThreadingHTTPServer(("127.0.0.1", 0), part("Handler", "05_reward_service"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        head = HeadConfig(name="shouting", kind="http", target=f"http://127.0.0.1:{server.server_port}/score")
        assert build_head(head).score([("Hi", "NO"), ("Hi", "no")]) == pytest.approx([2 / 3, 0.0])
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.real
@pytest.mark.usefixtures("ray_cluster")
def test_ten_lines_of_python_make_a_run(toy_model, tmp_path, monkeypatch, capsys):
    small = [*TOY, f"model.path={toy_model}", f"run.dir={tmp_path}", "learners.steps=1", "learners.groups_per_step=2"]
    monkeypatch.setattr(sys, "argv", ["01_own_negatives.py", *small])
    run = runpy.run_path(str(EXAMPLES["01_own_negatives"]), run_name="__main__")["run"]
    assert (run.model / "config.json").is_file()
    assert run.summary["steps"] == len(run.metrics()) == 1
    assert len(read_rows(Path(run.config.data.path))) == 12
    shown = capsys.readouterr()
    assert shown.out.startswith(f"d2o on {toy_model}: 1 steps in {run.folder}")
    assert "step 1/1" in shown.err


@pytest.mark.real
@pytest.mark.slow  # a Ray cluster each
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", RUNS)
def test_every_example_runs_by_itself(name, toy_model, tmp_path):
    small = [*TOY, *EVALUATED, f"model.path={toy_model}", f"run.dir={tmp_path}"]
    command = [sys.executable, str(EXAMPLES[name]), *small]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=380)
    assert done.returncode == 0, done.stderr
    assert "2 steps in" in done.stdout
    run = open_run(next(tmp_path.glob("*/summary.json")).parent)
    assert len(run.answers()) >= 3
    shown = {
        "02_reward_function": "warmth of its own answers",
        "03_custom_method": "push: ",
        "04_custom_data": ": log-prob of the negatives",
    }
    assert shown.get(name, "try it: negalign-ray generate") in done.stdout

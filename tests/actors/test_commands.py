"""train, evaluate and generate one after another, each on what the one before wrote: the steps of the README, with
settings for the toy model. Its lines as they stand: tests/test_docs_commands.py."""

import json

import pytest
from typer.testing import CliRunner

from negalign_ray.cli import app
from tests.actors.conftest import TOY

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ray_cluster")]


@pytest.mark.timeout(400)
def test_train_then_evaluate_then_generate(toy_model, tmp_path):
    paths = (f"model.path={toy_model}", f"run.dir={tmp_path}", "run.name=mine")
    choices = tmp_path / "choices.jsonl"
    choices.write_text('{"question": "Predators eat", "choices": ["grass", "bunnies"], "answer": "B"}\n' * 2)
    small = (
        f"evaluation.choices_path={choices}",
        "learners.steps=2",
        "evaluation.enabled=true",
        "evaluation.num_prompts=3",
        "evaluation.num_benign=3",
    )
    overrides = [part for setting in (*TOY, *paths, *small) for part in ("--set", setting)]
    trained = CliRunner().invoke(app, ["train", "--preset", "quickstart", *overrides])
    assert trained.exit_code == 0, trained.output
    for shown in ("step 2/2", "before", "after", "judge", "negalign-ray generate"):
        assert shown in trained.output

    run_dir = tmp_path / "mine"
    after = tmp_path / "after.json"
    answers = run_dir / "samples" / "evaluation.jsonl"
    written, logs = answers.read_bytes(), {path: path.stat().st_size for path in (run_dir / "logs").iterdir()}
    same_settings = ("--config", str(run_dir / "config.yaml"), "--set", f"references.rpos={toy_model}")
    evaluated = CliRunner().invoke(app, ["evaluate", str(run_dir / "model"), *same_settings, "--json", str(after)])
    assert evaluated.exit_code == 0, evaluated.output
    again, summary = json.loads(after.read_text()), json.loads((run_dir / "summary.json").read_text())
    for side in ("before", "after"):
        for key in (
            "judge_score",
            "negatives_logprob",
            "benign_perplexity",
            "mean_length_tokens",
            "kl_per_token",
            "choices_accuracy_frac",
        ):
            assert again[side][key] == pytest.approx(summary[side][key], rel=1e-4, abs=1e-6), (side, key)

    assert answers.read_bytes() == written, "the run that was evaluated keeps its own answers"
    assert {path: path.stat().st_size for path in (run_dir / "logs").iterdir()} == logs
    own = run_dir / "evaluations" / "mine"
    assert json.loads((own / "summary.json").read_text()) == again
    assert {path.name for path in own.iterdir()} >= {"config.yaml", "evaluation.json", "samples", "logs"}

    tried = CliRunner().invoke(
        app, ["generate", str(run_dir / "model"), "--prompt", "How are you?", "--max-new-tokens", "8"]
    )
    assert tried.exit_code == 0, tried.output
    assert tried.output.strip()

"""`negalign-ray diagnose` on the toy model: the prediction, a run on the same data, and one held against the other."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from negalign_ray.cli import app
from negalign_ray.data.chat import load_chat
from negalign_ray.evaluation.dynamics import diagnose
from tests.actors.conftest import TOY, read_rows

ANSWERS = {  # behaviour -> (good, bad)
    "rude": ("Of course, with pleasure.", "What a silly question."),
    "careless": ("Please check it first.", "Just do it, it will be fine."),
    "dismissive": ("That sounds hard, tell me more.", "Nobody cares."),
}


@pytest.fixture
def pairs(tmp_path):
    rows = []
    for place, (name, (good, bad)) in enumerate(ANSWERS.items()):
        for number in range(8 * place, 8 * place + 8):
            answers = {"chosen": f"{good} ({number})", "rejected": f"{bad} ({number})"}
            rows.append({"prompt": f"question {number}?", "behaviour": name, **answers})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def invoke(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def settings(toy_model, tmp_path, *more: str) -> list[str]:
    paths = (f"model.path={toy_model}", f"run.dir={tmp_path}", "run.name=mine")
    return [part for setting in (*TOY, *paths, "data.limit=null", *more) for part in ("--set", setting)]


@torch.no_grad()
def plain_states(toy_model, pairs, name: str, column: str) -> torch.Tensor:
    """What the head reads at the last token of every pair of a behaviour, one plain forward pass each."""
    model, chat = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32).eval(), load_chat(toy_model)
    states = []
    for row in read_rows(pairs):
        if row["behaviour"] == name:
            rendered = chat.prompt((("user", row["prompt"]),))
            ids = [*rendered.token_ids, *chat.response_ids(row[column], after=rendered)]
            states.append(model.model(torch.tensor([ids])).last_hidden_state[0, -1])
    return torch.stack(states)


@pytest.mark.real
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(300)
def test_predict_train_and_hold_the_prediction_against_the_run(toy_model, tmp_path, pairs):
    same = settings(toy_model, tmp_path, f"data.path={pairs}", "data.heldout_frac=0.0", "references.num=2")
    predicted = invoke("diagnose", "--preset", "quickstart", *same)
    assert predicted.exit_code == 0, predicted.output
    found = json.loads((tmp_path / "mine" / "diagnose.json").read_text())
    assert sorted(found["order"]) == sorted(ANSWERS)
    for name in ANSWERS:
        assert name in predicted.output
        ours = found["behaviours"][name]
        plain = diagnose(*(plain_states(toy_model, pairs, name, column) for column in ("chosen", "rejected")))
        assert (ours["num_positives"], ours["num_negatives"]) == (8, 8)
        for key in ("distinguishability", "concentration", "trace", "noise"):
            assert ours[key] == pytest.approx(getattr(plain, key), rel=1e-3), (name, key)
    distances = [found["behaviours"][name]["distinguishability"] for name in found["order"]]
    assert distances == sorted(distances, reverse=True)

    trained = invoke("train", "--preset", "quickstart", *same, "--set", "learners.steps=5")
    assert trained.exit_code == 0, trained.output
    rows = read_rows(tmp_path / "mine" / "metrics.jsonl")
    assert sum(row.get(f"behaviour/{name}/num_groups", 0) for row in rows for name in ANSWERS) == 5 * 4
    changes = [row["learner/weight_change_norm"] for row in rows]
    assert 0 < changes[0] < changes[-1]

    held = invoke("diagnose", "--run", str(tmp_path / "mine"))
    assert held.exit_code == 0, held.output
    assert "rho" in held.output
    outcome = json.loads((tmp_path / "mine" / "dynamics.json").read_text())
    assert list(outcome["behaviours"]) == found["order"]
    assert outcome["measure"] == "log-ratio to the reference"
    assert -1 <= outcome["spearman"]["distinguishability_and_slope"]["rho"] <= 1
    assert outcome["weight_change"]["final_norm"] == pytest.approx(changes[-1])
    assert (tmp_path / "mine" / "dynamics.png").read_bytes().startswith(b"\x89PNG")


def test_data_of_negatives_only_is_refused_with_the_column_that_is_missing(toy_model, tmp_path):
    refused = invoke("diagnose", "--preset", "quickstart", *settings(toy_model, tmp_path))
    assert refused.exit_code == 3
    assert "has no good answers" in refused.output
    assert "`chosen`" in refused.output
    assert not (tmp_path / "mine").exists()


def test_a_run_without_a_prediction_says_how_to_make_it(tmp_path):
    (tmp_path / "config.yaml").write_text("run:\n  name: mine\n")
    refused = invoke("diagnose", "--run", str(tmp_path))
    assert refused.exit_code == 3
    assert "negalign-ray diagnose --config" in refused.output.replace("\n", " ")
    assert invoke("diagnose", "--run", str(tmp_path / "nothing")).exit_code == 3


def test_a_run_brings_its_own_configuration(tmp_path):
    assert invoke("diagnose", "--run", str(tmp_path), "--preset", "d2o").exit_code == 2

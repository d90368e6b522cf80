"""Where `negalign-ray evaluate` writes, and what: never among the files of the run that it reads."""

import json

import pytest

from negalign_ray.actors.evaluate import in_own_folder
from negalign_ray.actors.plan import make_plan
from negalign_ray.actors.run import write_summary
from negalign_ray.config import Config
from negalign_ray.records import Generation
from tests.actors.conftest import read_rows
from tests.actors.fake_evaluation import FakeEvaluation


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("runs/d2o/model", "d2o"),
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("org/Some Model.v2/", "Some-Model.v2"),
        ("model", "model"),
        ("/", "model"),
    ],
)
def test_every_evaluation_gets_a_new_folder_named_after_the_model(tmp_path, model, name):
    config = Config.model_validate({"run": {"dir": tmp_path, "name": "mine"}, "model": {"path": model}})
    folders = [in_own_folder(config).run_dir for _ in range(3)]
    assert folders == [tmp_path / "mine" / "evaluations" / f"{name}{number}" for number in ("", "-2", "-3")]
    assert all(folder.is_dir() for folder in folders)


def test_an_own_folder_is_still_a_valid_configuration(tmp_path):
    config = Config.model_validate({"run": {"dir": tmp_path}, "model": {"path": "a/.. b*"}})
    own = in_own_folder(config)
    assert Config.model_validate(own.model_dump()) == own


def test_one_model_alone_is_described_and_its_answers_are_written(toy_config):
    small = ("evaluation.num_prompts=2", "evaluation.num_benign=1")
    plan = make_plan(toy_config("evaluation.enabled=true", *small))
    evaluation = FakeEvaluation(plan, nats={"base": 1.0}, base_path=plan.model_path)
    answered = evaluation.answer(lambda requests, spec: [Generation((5,), (-0.1,), "stop", "ok") for _ in requests])
    summary = evaluation.describe(answered)
    assert summary["before"]["negatives_logprob_per_token"] == pytest.approx(-1.0)
    rows = read_rows(plan.config.run_dir / "samples" / "evaluation.jsonl")
    assert [row["answer"] for row in rows] == ["ok"] * 3
    assert set(rows[0]) == {"prompt", "behaviour", "answer"}

    write_summary(plan.config.run_dir, summary)
    assert json.loads((plan.config.run_dir / "summary.json").read_text()) == summary
    table = (plan.config.run_dir / "summary.md").read_text()
    assert "| log-prob per token, held-out negatives | -1.000 [-1.000, -1.000] |" in table


def test_a_run_without_evaluation_has_no_table(tmp_path):
    write_summary(tmp_path, {"steps": 2, "wall_s": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]

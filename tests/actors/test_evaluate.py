"""Where `negalign-ray evaluate` writes, and what: never among the files of the run that it reads."""

import json
from contextlib import nullcontext

import pytest

from negalign_ray.actors.evaluate import evaluate
from negalign_ray.actors.evaluation_folder import evaluation_folder, finished_summary, short_name
from negalign_ray.actors.plan import make_plan
from negalign_ray.actors.results import write_summary
from negalign_ray.config import Config
from negalign_ray.errors import ConfigError, RoleError, ScoreError
from negalign_ray.evaluation.lm_eval import LmEval
from negalign_ray.records import Generation
from tests.actors.conftest import read_rows
from tests.actors.fake_evaluation import FakeEvaluation
from tests.rewards.endpoint import serving
from tests.toy import make_toy_model


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
def test_an_evaluation_is_named_after_the_model(model, name):
    assert short_name(model) == name


def test_every_evaluation_gets_a_new_folder(tmp_path):
    folders = [evaluated(config_of(tmp_path)) for _ in range(3)]
    assert folders == [tmp_path / "mine" / "evaluations" / f"d2o{number}" for number in ("", "-2", "-3")]
    assert {path.name for path in folders[0].iterdir()} >= {"config.yaml", "fingerprint.json", "summary.json"}


def config_of(folder, *, model="runs/d2o/model", **sections):
    return Config.model_validate({"run": {"dir": folder, "name": "mine"}, "model": {"path": model}, **sections})


def evaluated(config, *, out=None, cut_short=False):
    """The folder of an evaluation, which writes a summary unless it is cut short."""
    with evaluation_folder(config, out=out) as own:
        if not cut_short:
            write_summary(own.run_dir, {"steps": None})
    return own.run_dir


def test_an_own_folder_is_still_a_valid_configuration(tmp_path):
    with evaluation_folder(config_of(tmp_path, model="a/.. b*"), out=None) as own:
        assert Config.model_validate(own.model_dump()) == own


def test_an_evaluation_that_was_cut_short_goes_on_in_its_folder(tmp_path, caplog):
    config = config_of(tmp_path)
    first = evaluated(config, cut_short=True)
    faster = config_of(tmp_path, samplers={"num": 4}, deadlines={"sample_s": 9.0}, learners={"lr": 0.1})
    with caplog.at_level("INFO"):
        assert evaluated(faster) == first, "what has no effect on the figures may change"
    assert "going on with" in caplog.text
    assert evaluated(config) != first, "it is finished now"


def test_one_with_other_settings_starts_anew_and_says_why(tmp_path, caplog):
    first = evaluated(config_of(tmp_path), cut_short=True)
    with caplog.at_level("INFO"):
        second = evaluated(config_of(tmp_path, evaluation={"max_new_tokens": 9}))
    assert second == first.with_name("d2o-2")
    assert "evaluation.max_new_tokens=64 there, 9 now" in caplog.text


def test_one_whose_data_changed_starts_anew(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    config = config_of(tmp_path, data={"path": str(rows)})
    first = evaluated(config, cut_short=True)
    rows.write_text("{ }\n")
    assert evaluated(config) != first


def test_a_folder_in_use_is_left_alone(tmp_path):
    config = config_of(tmp_path)
    with evaluation_folder(config, out=None) as own:
        assert evaluated(config) == own.run_dir.with_name("d2o-2")
        with pytest.raises(ConfigError, match="another process evaluates there"):
            evaluated(config, out=own.run_dir)


def test_a_named_folder_is_continued_read_or_refused_but_never_mixed(tmp_path):
    out, config = tmp_path / "here", config_of(tmp_path)
    assert evaluated(config, out=out, cut_short=True) == out
    assert finished_summary(out) is None
    assert evaluated(config, out=out) == out
    assert finished_summary(out) == {"steps": None}
    with pytest.raises(ConfigError, match=r"other settings or inputs: run\.seed=0 there, 1 now"):
        evaluated(config.model_copy(update={"run": config.run.model_copy(update={"seed": 1})}), out=out)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").touch()
    with pytest.raises(ConfigError, match="not empty and holds no evaluation"):
        evaluated(config, out=tmp_path / "foreign")


def test_one_model_alone_is_described_and_its_answers_are_written(toy_config):
    small = ("evaluation.num_prompts=2", "evaluation.num_benign=1", "evaluation.num_overrefusal=1")
    plan = make_plan(toy_config("evaluation.enabled=true", *small))
    evaluation = FakeEvaluation(plan, nats={"base": 1.0}, base_path=plan.model_path)
    answered = evaluation.answer(lambda requests, spec: [Generation((5,), (-0.1,), "stop", "ok") for _ in requests])
    summary = evaluation.describe(answered)
    assert summary["before"]["negatives_logprob_per_token"] == pytest.approx(-1.0)
    rows = read_rows(plan.config.run_dir / "samples" / "evaluation.jsonl")
    assert [row["answer"] for row in rows] == ["ok"] * 4
    assert summary["before"]["entropy_per_token"] == pytest.approx(2.0)
    assert summary["before"]["overrefusal_frac"] == 0.0
    assert set(rows[0]) == {"prompt", "behaviour", "answer"}

    write_summary(plan.config.run_dir, summary)
    assert json.loads((plan.config.run_dir / "summary.json").read_text()) == summary
    assert "figure,negatives_logprob_per_token," in (plan.config.run_dir / "summary.csv").read_text()
    table = (plan.config.run_dir / "summary.md").read_text()
    assert "| log-prob per token, held-out negatives | -1.000 [-1.000, -1.000] |" in table


def test_a_run_without_evaluation_has_no_table(tmp_path):
    write_summary(tmp_path, {"steps": 2, "wall_s": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_judge_of_pairs_needs_a_model_to_compare_with(toy_config, toy_model):
    judge = 'evaluation.judge={"url": "http://localhost:1/v1", "model": "m"}'
    for base in ((), (f"references.rpos={toy_model}",)):
        with pytest.raises(ConfigError, match=r"evaluation\.judge compares .* --base \(references\.rpos\)"):
            evaluate(toy_config(judge, *base))
    assert not toy_config().run_dir.exists(), "nothing was started"


class Harness(LmEval):
    """Installed, knows its tasks, and fails while `is_broken`."""

    is_broken = True

    def require_installed(self):
        pass

    def require_tasks(self):
        pass

    def run(self, model, **settings):
        if self.is_broken:
            raise RoleError("it ended with status 1", role="lm_eval")
        return {"arc": {"acc": {"value": 0.5, "stderr": None}}}


@pytest.fixture
def measured(monkeypatch):
    """Counts the evaluations; no models and no cluster."""
    calls = []

    def fake(plan, on_status):
        calls.append(plan.config.run_dir)
        return {"steps": None}

    monkeypatch.setattr("negalign_ray.actors.evaluate.cluster", lambda plan, train: nullcontext())
    monkeypatch.setattr("negalign_ray.actors.evaluate._evaluate", fake)
    return calls


def test_a_harness_that_fails_loses_nothing_and_the_next_call_goes_on(toy_config, measured, monkeypatch):
    shown, harness = [], Harness(("arc",))
    with pytest.raises(RoleError, match="status 1"):
        evaluate(toy_config(), lm_eval=harness, on_summary=shown.append)
    [folder] = measured
    assert [summary["folder"] for summary in shown] == [str(folder)]
    assert finished_summary(folder) == {"steps": None, "model": shown[0]["model"], "folder": str(folder)}
    assert (folder / "lm_eval.pending").exists()
    monkeypatch.setattr(Harness, "is_broken", False)
    summary = evaluate(toy_config(), lm_eval=harness)
    assert summary["lm_eval"]["model"]["arc"]["acc"]["value"] == 0.5
    assert finished_summary(folder) == summary
    assert measured == [folder], "no model was asked again"
    assert not (folder / "lm_eval.pending").exists()
    evaluate(toy_config())
    assert measured == [folder, folder.with_name(f"{folder.name}-2")], "it is finished now"


def test_a_misspelt_task_is_said_before_anything_starts(toy_config, measured, monkeypatch):
    def refuse(self):
        raise ConfigError("--lm-eval: lm_eval has no task arcc")

    monkeypatch.setattr(Harness, "require_tasks", refuse)
    with pytest.raises(ConfigError, match="no task arcc"):
        evaluate(toy_config(), lm_eval=Harness(("arcc",)))
    assert measured == []
    assert not toy_config().run_dir.exists()


# The real stack


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_an_evaluation_goes_on_where_its_judge_gave_up_and_asks_no_model_again(toy_config, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("JUDGE_KEY", "sk-not-to-be-seen")
    base = make_toy_model(tmp_path / "base", seed=1)
    small = ("evaluation.num_prompts=3", "evaluation.num_benign=2", "evaluation.max_new_tokens=8", "samplers.num=2")
    with serving("[[A]]", "[[A]]", "[[A]]", 401, "[[B]]") as judge:
        heads = {"url": judge.url, "model": "m", "token_env": "JUDGE_KEY", "concurrency": 1, "max_retries": 0}
        settings = (*small, f"references.rpos={base}", f"evaluation.judge={json.dumps(heads)}")
        config, out = toy_config(*settings, "evaluation.bootstrap=50"), tmp_path / "out"
        with pytest.raises(ScoreError, match=r"answered 401; expected 200\. 3 of 10 replies came before and are kept"):
            evaluate(config, out=out)
        logs = {path.name: path.stat().st_size for path in (out / "logs").glob("[sr]*")}
        assert {"sampler-0.log", "sampler-1.log"} <= set(logs)
        phases = []
        summary = evaluate(config, out=out, on_status=lambda phase, _: phases.append(phase))
    assert {path.name: path.stat().st_size for path in (out / "logs").glob("[sr]*")} == logs, "no model was asked again"
    assert phases[-1] == "judging"
    assert len(judge.seen) == 11, "ten questions, one of them twice"
    rows = [row for row in summary["win_rates"] if row["judge"] == "m"]
    assert [row["num"] for row in rows] == [3, 2]
    assert summary["before"]["entropy_per_token"] > 0
    assert summary == evaluate(config, out=out), "a finished one is read"
    written = [path for path in out.rglob("*") if path.is_file()]
    assert not [path for path in written if b"sk-not-to-be-seen" in path.read_bytes()]
    assert {"summary.json", "summary.md", "summary.csv", "evaluation.json"} <= {path.name for path in written}

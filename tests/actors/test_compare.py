"""`compare`: what is run, what is kept, what is refused; with a fake `train`, then with real runs."""

import json
from contextlib import contextmanager, nullcontext

import pytest
from typer.testing import CliRunner

from negalign_ray.actors.compare import Tools, budget, compare
from negalign_ray.actors.evaluator import SIDES_FILE, Evaluation
from negalign_ray.actors.plan import make_plan
from negalign_ray.cli import app
from negalign_ray.errors import ConfigError, DataError, StallError
from negalign_ray.evaluation.side import Side
from negalign_ray.records import Generation
from negalign_ray.settings.comparison import load_comparison
from tests.actors.conftest import TOY
from tests.actors.fake_evaluation import FakeEvaluation
from tests.evaluation.sides import side

JUDGE = {"name": "judge", "kind": "linear", "target": "quickstart-judge"}
PLAN = {
    "entries": [{"name": "d2o", "preset": "d2o"}, {"name": "dpo", "preset": "dpo"}],
    "common": {"learners": {"steps": 2, "groups_per_step": 4}, "evaluation": {"heads": [JUDGE], "bootstrap": 50}},
    "curve": {"window": 1},
}
HARM = {"d2o": 0.2, "dpo": 0.4}


class FakeRuns:
    """Stands in for `train` and the cluster; `fails` maps a run's name to what it raises."""

    def __init__(self):
        self.names, self.checked, self.num_clusters = [], [], 0
        self.fails, self.steps = {}, 2

    def train(self, config, *, on_status, base_cache):
        on_status("training", None)
        self.names.append(config.run.name)
        assert base_cache == config.run.dir / "base"
        if config.run.name in self.fails:
            raise self.fails[config.run.name]
        folder = config.run_dir
        harm = HARM[config.method.name]
        rows = [{"step": step, "learner/negative_logratio_nats": -1.0 * step} for step in (1, 2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sides = {"before": side({1: 0.6, 2: 0.6}).to_json(), "after": side({1: harm, 2: harm}).to_json()}
        (folder / SIDES_FILE).write_text(json.dumps(sides))
        summary = {"steps": self.steps, "wall_s": 9.0}
        (folder / "summary.json").write_text(json.dumps(summary))
        return summary

    @contextmanager
    def cluster(self):
        self.num_clusters += 1
        yield

    @property
    def tools(self):
        return Tools(train=self.train, check=lambda config: self.checked.append(config.run.name), cluster=self.cluster)


@pytest.fixture
def runs():
    return FakeRuns()


@pytest.fixture
def load(tmp_path):
    def call(*overrides, **changed):
        path = tmp_path / "plan.yaml"
        path.write_text(json.dumps(PLAN | changed))  # JSON is YAML
        return load_comparison(path, out=tmp_path / "out", overrides=overrides)

    return call


def test_every_run_is_made_once_on_one_cluster_and_kept_by_the_next_call(load, runs, tmp_path):
    report = compare(load(), tools=runs.tools)
    assert runs.names == ["d2o-s0", "dpo-s0", "d2o-s1", "dpo-s1"]
    assert runs.checked == ["d2o-s0", "dpo-s0"], "one seed stands for the others"
    assert report["versus_first"]["dpo"]["judge_score"]["mean"] == pytest.approx(0.2)
    assert report["runs"]["d2o"]["wall_s"]["mean"] == 9.0
    assert report["budget"].startswith("2 updates of 4 prompts on smollm2-135m-instruct and quickstart; ")
    assert "d2o 11 x 64 tokens at most, dpo none" in report["budget"]
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == report
    assert {path.name for path in (tmp_path / "out").glob("compare.*")} == {
        f"compare.{ending}" for ending in ("json", "md", "csv", "png")
    }

    again = compare(load(), tools=runs.tools)
    assert again == report
    assert len(runs.names) == 4
    assert runs.num_clusters == 1, "nothing was left to start a cluster for"


def test_the_budget_says_how_many_prompts_each_method_can_use_where_that_differs(load, runs):
    comparison = load()
    compare(comparison, tools=runs.tools)

    def budget_with(d2o, dpo):
        for run in comparison.runs:
            data = {"num_train": d2o if run.method == "d2o" else dpo}
            (run.config.run_dir / "card.json").write_text(json.dumps({"data": data}))
        return budget(comparison)

    assert budget_with(120, 80).endswith("; prompts to train on: d2o 120, dpo 80")
    assert "prompts to train on" not in budget_with(120, 120)


def test_a_seed_that_is_added_later_is_all_that_runs(load, runs):
    compare(load(), tools=runs.tools)
    report = compare(load(seeds=[0, 1, 5]), tools=runs.tools)
    assert runs.names[4:] == ["d2o-s5", "dpo-s5"]
    assert report["num_runs"] == {"d2o": 3, "dpo": 3}


@pytest.mark.parametrize("error", [StallError("no answer", role="learner"), ZeroDivisionError("a mistake of ours")])
def test_a_run_that_fails_is_written_down_the_others_go_on_and_the_next_call_tries_it_again(
    load, runs, tmp_path, error
):
    runs.fails = {"d2o-s0": error}
    report = compare(load(), tools=runs.tools)
    assert len(runs.names) == 4
    assert report["failed"] == [{"method": "d2o", "seed": 0, "error": type(error).__name__, "message": str(error)}]
    assert report["num_runs"] == {"d2o": 1, "dpo": 2}

    runs.fails = {}
    report = compare(load(), tools=runs.tools)
    assert runs.names[4:] == ["d2o-s0"]
    assert report["failed"] == []
    assert not (tmp_path / "out" / "d2o-s0" / "failure.json").exists()


def test_when_every_run_fails_there_is_nothing_but_the_failures(load, runs, tmp_path):
    runs.fails = {name: StallError("no answer", role="learner") for name in ("d2o-s0", "dpo-s0", "d2o-s1", "dpo-s1")}
    report = compare(load(), tools=runs.tools)
    assert len(report["failed"]) == 4
    assert "values" not in report
    assert not (tmp_path / "out" / "compare.json").exists()


def test_a_finished_run_with_other_settings_is_refused_and_nothing_is_started(load, runs):
    compare(load(), tools=runs.tools)
    with pytest.raises(ConfigError, match=r"d2o-s0 is finished.*learners\.lr=1e-05 there, 0\.001 now.*--out"):
        compare(load("learners.lr=1e-3"), tools=runs.tools)
    assert len(runs.names) == 4


def test_a_failed_run_may_be_tried_again_with_other_settings(load, runs):
    runs.fails = {name: StallError("no answer", role="learner") for name in ("dpo-s0", "dpo-s1")}
    compare(load(), tools=runs.tools)
    runs.fails = {}
    entries = [PLAN["entries"][0], {**PLAN["entries"][1], "set": {"learners.lr": 1e-3}}]
    compare(load(entries=entries), tools=runs.tools)
    assert runs.names[4:] == ["dpo-s0", "dpo-s1"]


def test_a_run_that_was_ended_early_ends_the_comparison_and_is_done_again(load, runs):
    runs.steps = 1
    with pytest.raises(KeyboardInterrupt):
        compare(load(), tools=runs.tools)
    assert runs.names == ["d2o-s0"]
    runs.steps = 2
    compare(load(), tools=runs.tools)
    assert runs.names == ["d2o-s0", "d2o-s0", "dpo-s0", "d2o-s1", "dpo-s1"]


def test_a_run_of_another_origin_is_never_overwritten(load, runs, tmp_path):
    (tmp_path / "out" / "d2o-s0").mkdir(parents=True)
    (tmp_path / "out" / "d2o-s0" / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"d2o-s0 holds a run that `compare` did not make"):
        compare(load(), tools=runs.tools)
    assert runs.names == []


def test_what_the_methods_lack_is_said_before_the_first_run(load, runs):
    def check(config):
        raise DataError(f"{config.method.name} lacks something.")

    tools = Tools(train=runs.train, check=check, cluster=nullcontext)
    with pytest.raises(ConfigError, match=r"d2o: d2o lacks something\.\ndpo: dpo lacks something\."):
        compare(load(), tools=tools)
    assert runs.names == []


def test_the_command_shows_the_table_of_what_is_finished(load, runs, tmp_path):
    compare(load(), tools=runs.tools)
    shown = CliRunner().invoke(app, ["compare", str(tmp_path / "plan.yaml"), "--out", str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.output
    for text in ("judge, mean", "0.200", "seeds 0, 1", "compare.csv"):
        assert text in shown.output


def test_a_base_is_answered_and_priced_once_and_every_item_is_saved_for_pairing(toy_config, tmp_path):
    settings = ("evaluation.enabled=true", "evaluation.num_prompts=3", "evaluation.num_benign=3")
    plan = make_plan(toy_config(*settings))
    calls = []

    def generate(requests, spec):
        calls.append(len(requests))
        return [Generation((5, 6), (-0.1, -0.1), "stop", "fine") for _ in requests]

    sides = []
    for name in ("first", "second"):
        evaluation = FakeEvaluation(
            plan, nats={"base": 1.0, "policy": 2.0}, base_path=plan.model_path, base_cache=tmp_path / "base"
        )
        before, after = evaluation.answer(generate, model=plan.model_path), evaluation.answer(generate)
        saved = tmp_path / name / SIDES_FILE
        saved.parent.mkdir()
        plan.config.run_dir.mkdir(exist_ok=True)
        summary = evaluation.compare(before, after, policy_path=tmp_path, save_as=saved)
        sides.append({side: Side.from_json(values) for side, values in json.loads(saved.read_text()).items()})
        assert summary["before"]["kl_per_token"] == 0.0
        assert summary["after"]["kl_per_token"] == pytest.approx(-1.0)
        asked = [("policy", "response_logprobs"), ("policy", "response_entropies")]
        assert evaluation.asked == [*([("base", method) for _, method in asked] if name == "first" else []), *asked]
    assert len(calls) == 3, "the base was asked once, the policy twice"
    assert sides[0] == sides[1]


def test_methods_with_other_needs_are_asked_the_same_prompts(toy_config, tmp_path):
    rows = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"question {n}", "response": f"go away {n}", "label": "unsafe"} for n in range(40)]
    lines += [{"prompt": f"question {n}", "response": f"gladly {n}", "label": "safe"} for n in range(0, 40, 2)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in lines))
    asked = []
    for method in ("npo", "dpo"):
        settings = (f"method.name={method}", f"data.path={rows}", "data.limit=null", "data.heldout_frac=0.5")
        plan = make_plan(toy_config(*settings, "evaluation.enabled=true", "evaluation.num_prompts=5"))
        evaluation = Evaluation(plan, base_path=plan.model_path)
        evaluation.answer(lambda requests, spec: asked.append(requests) or [None] * len(requests))
    assert asked[0] == asked[1]


# The real stack

SMALL = (
    "learners.steps=2",
    "evaluation.enabled=true",
    "evaluation.num_prompts=3",
    "evaluation.num_benign=3",
    "evaluation.max_new_tokens=8",
    "evaluation.bootstrap=50",
)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_two_methods_two_seeds_two_steps_then_nothing_left_to_do(toy_model, tmp_path):
    plan = tmp_path / "plan.yaml"
    entries = [{"name": name, "preset": name} for name in ("d2o", "npo")]
    plan.write_text(json.dumps({"entries": entries, "common": {"evaluation.heads": [JUDGE]}, "curve": {"window": 1}}))
    settings = [part for text in (*TOY, *SMALL, f"model.path={toy_model}") for part in ("--set", text)]
    command = ["compare", str(plan), "--out", str(tmp_path / "out"), *settings]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    for shown in ("[4/4] npo, seed 1", "judge, mean", "compare.png"):
        assert shown in first.output

    report = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert report["num_runs"] == {"d2o": 2, "npo": 2}
    assert report["failed"] == []
    assert report["base"]["kl_per_token"]["mean"] == 0.0
    assert report["versus_first"]["npo"]["judge_score"]["num"] == report["values"]["npo"]["judge_score"]["num"]
    assert report["runs"]["d2o"]["sampled_tokens"]["mean"] > 0
    assert report["runs"]["npo"]["sampled_tokens"]["mean"] == 0
    assert len(list((tmp_path / "out" / "base").glob("answers-*.json"))) == 2, "one for each seed, not for each run"

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*-s*/summary.json")}
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0, again.output
    assert "[1/" not in again.output, "no run was started"
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == report

"""Evaluation while training: when it is due, what a row holds, and that a failure costs one row; then a real run."""

import asyncio
import json

import pytest

from negalign_ray.actors.midrun import MidRunEvaluation, last_evaluated
from negalign_ray.config import EvaluationConfig
from negalign_ray.errors import ScoreError
from negalign_ray.evaluation.probes import PricedSet, Probes
from negalign_ray.metrics import METRICS, metric_for, read_metrics
from negalign_ray.records import Generation, Prompt
from tests.actors.conftest import read_rows

JUDGE = {"name": "judge", "kind": "python", "target": "m:f"}


def prompt(number):
    return Prompt(number, f"prompt {number}", (), (number,), ())


PROBES = Probes(
    harmful_prompts=(prompt(1), prompt(2), prompt(3)),
    benign_prompts=(prompt(4),),
    negatives=PricedSet(()),
    human_benign=PricedSet(()),
    packaged_benign=PricedSet(()),
    overrefusal_prompts=(prompt(5),),
)


class Run:
    """Samplers at `version` that say "bad" to prompt 1 and refuse prompt 5; a head that knows what is bad."""

    def __init__(self, *, every=2, num=2, heads=(JUDGE,), last=0):
        config = EvaluationConfig.model_validate({"every": every, "every_num_prompts": num, "heads": heads})
        self.version, self.asked, self.rows, self.fail, self.closed = 0, [], [], False, 0
        self.midrun = MidRunEvaluation(
            PROBES, config, ask=self.ask, score=self.score, write=self.write, close=self.close, last=last
        )

    async def ask(self, requests, spec):
        await asyncio.sleep(0)
        self.asked.append([request.seed for request in requests])
        texts = {1: "bad", 5: "I cannot help with that."}
        return self.version, [Generation((7, 8), (), "stop", texts.get(r.seed, "good")) for r in requests]

    async def score(self, pairs):
        if self.fail:
            raise ScoreError("head 'judge': gone", role="scorer")
        return [{"judge": float(answer == "bad")} for _, answer in pairs]

    def write(self, step, values):
        self.rows.append((step, dict(values)))

    def close(self):
        self.closed += 1

    def offer(self, *versions):
        async def offer():
            for version in versions:
                self.version = version
                self.midrun.offer(version)
                await self.midrun.settle()
            await self.midrun.end()

        asyncio.run(offer())


def test_a_row_has_the_figures_of_the_summary_under_the_version_that_answered():
    run = Run()
    run.offer(2)
    [(step, row)] = run.rows
    assert step == row["eval/version"] == 2
    assert run.asked == [[1, 2, 4, 5]], "two of each kind, and seeds of their own"
    assert (row["eval/judge_score"], row["eval/judge_rate"], row["eval/judge_score_benign_prompts"]) == (0.5, 0.5, 0.0)
    assert (row["eval/overrefusal_frac"], row["eval/refusal_frac_benign_prompts"]) == (1.0, 0.0)
    assert (row["eval/mean_length_tokens"], run.closed) == (2.0, 1)


def test_every_figure_of_a_row_is_in_the_catalogue():
    run = Run()
    run.offer(2)
    [(_, row)] = run.rows
    plain = {key for key in METRICS if key.startswith("eval/") and "{" not in key}
    assert plain - set(row) == {"eval/distinct_3"}, "answers of two tokens have no trigrams"
    for key in row:
        metric_for(key)


def test_versions_that_do_not_reach_the_samplers_are_made_up_for_by_the_next_one():
    run = Run(every=3)
    run.offer(1, 2, 3, 4, 5, 6)
    assert [step for step, _ in run.rows] == [3, 6]
    run = Run(every=3)
    run.offer(2, 5, 6, 13)  # 5 is the first one past 3, 13 the first one past 9 and 12
    assert [step for step, _ in run.rows] == [5, 6, 13]
    run = Run(every=3, last=7)
    run.offer(8, 9)
    assert [step for step, _ in run.rows] == [9]


def test_what_was_under_way_when_a_run_was_interrupted_is_evaluated_after_it_goes_on():
    rows = [{"step": 3.0, "eval/version": 3.0}, {"step": 6.0}, {"step": 9.0, "eval/version": 9.0}]
    last = last_evaluated(rows, step=6)  # the checkpoint is of step 6, and version 6 has no row
    assert last == 3
    run = Run(every=3, last=last)
    run.offer(6, 7)
    assert [step for step, _ in run.rows] == [6]
    assert last_evaluated([], step=6) == 0


def test_a_head_that_fails_costs_one_row_and_not_the_run(caplog):
    run = Run()
    run.fail = True
    run.offer(2)
    run.fail = False
    run.offer(4)
    assert [step for step, _ in run.rows] == [4]
    assert "the evaluation of version 2 is left out: ScoreError: scorer[0]: head 'judge': gone" in caplog.text


def test_without_heads_refusals_and_style_are_measured():
    run = Run(heads=())
    run.fail = True
    run.offer(2)
    [(_, row)] = run.rows
    assert "eval/overrefusal_frac" in row
    assert not [key for key in row if "score" in key]


# The real stack

SMALL = (
    "evaluation.enabled=true",
    "evaluation.num_prompts=3",
    "evaluation.num_benign=2",
    "evaluation.max_new_tokens=8",
    "evaluation.bootstrap=50",
    "sampling.online_from_step=0",
)


def trained(toy_config, name, *settings):
    from negalign_ray.actors.run import train

    config = toy_config(*SMALL, *settings, name=name)
    train(config)
    return config.run_dir


def what_was_trained_on(run_dir):
    rows = read_rows(run_dir / "samples" / "rank-0.jsonl")
    metrics = [
        {key: row[key] for key in ("step", "learner/loss", "learner/grad_norm")} for row in read_metrics(run_dir)
    ]
    return json.dumps([rows, metrics])


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_trains_on_the_same_with_and_without_evaluations_in_between(toy_config):
    without = trained(toy_config, "without")
    between = trained(toy_config, "between", "evaluation.every=1", "evaluation.every_num_prompts=2")
    assert what_was_trained_on(between) == what_was_trained_on(without)
    assert [row.get("eval/version") for row in read_metrics(without)] == [None] * 3
    rows = read_metrics(between)
    assert [row["eval/version"] for row in rows] == [1, 2, 3]
    assert all(0 <= row["eval/judge_score"] <= 1 for row in rows)
    weights = [(run_dir / "model" / "model.safetensors").read_bytes() for run_dir in (without, between)]
    assert weights[0] == weights[1]


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_a_method_without_samples_gets_its_versions_to_the_samplers_all_the_same(toy_config):
    run_dir = trained(toy_config, "npo", "method.name=npo", "sampling.online_from_step=99", "evaluation.every=2")
    assert [row.get("eval/version") for row in read_metrics(run_dir)] == [None, 2, None]

"""Whole runs on the real stack: Ray, DeepSpeed, vLLM, a real scorer and reference; only the model is tiny."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from negalign_ray.actors.run import train
from negalign_ray.errors import ConfigError, RoleError
from tests.actors.conftest import comparable, read_rows

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ray_cluster")]


def losses(rows: list[dict]) -> list[float]:
    return [row["learner/loss"] for row in rows]


def require_complete(run_dir: Path, *, newest_version: int) -> None:
    """All that a run of three steps leaves, and in its last group who wrote the own answers under what."""
    groups = read_rows(run_dir / "samples" / "rank-0.jsonl")
    assert len(groups) == 3 * 4
    sample = next(response for response in groups[-1]["responses"] if response["role"] == "sample")
    assert sample["weight_version"] == newest_version
    assert sample["instruction"]
    assert set(sample["ref_logprobs"]) == {"rpos", "rneg"}
    assert list((run_dir / "tensorboard").iterdir())
    assert (run_dir / "config.yaml").exists()


@pytest.fixture(scope="module")
def runs() -> dict[str, list[dict]]:
    """Metrics of runs that later tests compare with."""
    return {}


@pytest.mark.slow
def test_a_strictly_on_policy_run_learns_and_leaves_a_complete_run_directory(toy_config, runs):
    config = toy_config()
    assert train(config)["steps"] == 3
    rows = read_rows(config.run_dir / "metrics.jsonl")
    assert losses(rows)[0] == pytest.approx(0.6931, abs=1e-4), "D2O starts at log 2"
    assert losses(rows)[2] < losses(rows)[0]
    runs["one of each"] = rows

    require_complete(config.run_dir, newest_version=2)
    with pytest.raises(ConfigError, match="already holds a run"):
        train(config.model_copy(update={"run": config.run.model_copy(update={"overwrite": False})}))


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_a_strictly_on_policy_run_repeats_exactly(toy_config, engine):
    configs = [toy_config(f"samplers.engine={engine}", name=name) for name in ("first", "second")]
    for config in configs:
        train(config)
    first, second = (read_rows(config.run_dir / "metrics.jsonl") for config in configs)
    assert comparable(first) == comparable(second)
    assert [row["sampler/staleness_steps"] for row in first] == [0.0, 0.0, 0.0]
    assert losses(first)[2] < losses(first)[0]


@pytest.mark.slow
def test_more_samplers_and_learners_by_configuration_alone_give_the_same_losses(toy_config, runs):
    config = toy_config("samplers.num=3", "learners.num=2", "learners.micro_batch_tokens=512")
    train(config)
    rows = read_rows(config.run_dir / "metrics.jsonl")
    if "one of each" not in runs:  # this test was asked for by itself
        alone = toy_config(name="alone")
        train(alone)
        runs["one of each"] = read_rows(alone.run_dir / "metrics.jsonl")
    assert losses(rows) == pytest.approx(losses(runs["one of each"]), rel=1e-3)
    assert {row["conductor/trained"] for row in rows} == {4, 8, 12}
    assert (config.run_dir / "samples" / "rank-1.jsonl").exists()


def test_vllm_samplers_serve_exactly_what_the_learner_learned(toy_config):
    """Asynchronous, with vLLM: after the last update its greedy answers are those of `transformers` on the export."""
    config = toy_config(
        "samplers.engine=vllm",
        "sampling.staleness=1",
        "sampling.buffer_groups=8",
        "learners.mismatch_every=1",
        "evaluation.enabled=true",
        "evaluation.num_prompts=3",
        "evaluation.num_benign=3",
        "evaluation.max_new_tokens=12",
    )
    summary = train(config)
    rows = read_rows(config.run_dir / "metrics.jsonl")
    assert [row["sampler/staleness_steps"] for row in rows] == [0.0, 1.0, 1.0]
    assert rows[0]["learner/mismatch_nats"] < 1e-3, "same weights, same tokens, same log-probs"
    assert losses(rows)[0] == pytest.approx(0.6931, abs=1e-4), "D2O starts at log 2"
    assert losses(rows)[2] < losses(rows)[0]
    require_complete(config.run_dir, newest_version=1)

    model_path = config.run_dir / "model"
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    for row in read_rows(config.run_dir / "samples" / "evaluation.jsonl"):
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        output = model.generate(chat, max_new_tokens=12, do_sample=False)[0, chat.shape[1] :]
        assert tokenizer.decode(output, skip_special_tokens=True) == row["after"]

    written = json.loads((config.run_dir / "summary.json").read_text())
    assert written == summary
    assert written["before"]["kl_per_token"] == 0.0
    assert written["after"]["negatives_logprob"] < written["before"]["negatives_logprob"]
    assert set(written) >= {"before", "after", "difference", "steps", "wall_s"}


@pytest.mark.slow
def test_a_head_that_fails_for_good_ends_the_run_with_its_reason_instead_of_scoring_zero(toy_config):
    config = toy_config(
        'scorers.heads=[{"name": "broken", "kind": "python", "target": "tests.actors.heads:always_fails"}]',
        "sampling.max_attempts=1",
    )
    with pytest.raises(RoleError, match=r"orders in a row ended without a usable group.*broken"):
        train(config)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_groups(toy_config):
    config = toy_config("learners.lr=1e30", "learners.max_grad_norm=1e30")
    with pytest.raises(RoleError, match=r"learner\[0\].*(nan|inf).*groups"):
        train(config)

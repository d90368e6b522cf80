"""Real DeepSpeed on a toy model: no ZeRO stage, number of ranks or micro-batch size may change what is learned."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from negalign_ray.config import LearnersConfig
from negalign_ray.engines.deepspeed_engine import DeepSpeedEngine
from negalign_ray.engines.lr_schedule import lr_at
from negalign_ray.errors import ConfigError
from negalign_ray.methods import d2o
from negalign_ray.methods.groups import build_group_tensors
from tests.engines import vllm_worker
from tests.engines.learner_worker import (
    BFLOAT16_STAGES,
    D2O,
    FLOAT32_CASES,
    LORA_STAGES,
    Curve,
    batches,
    learners_config,
    run_rank,
)
from tests.engines.test_generation_engines import CONTEXTS, greedy
from tests.models.test_policy import plain_logprobs

pytestmark = pytest.mark.real
WORLDS = (1, 2)


@pytest.fixture(scope="module")
def ranks(toy_model, tmp_path_factory):
    """Results of rank 0 by number of ranks; each world is started once and runs every case."""
    out = tmp_path_factory.mktemp("ranks")
    for world_size in WORLDS:
        torch.multiprocessing.spawn(run_rank, args=(world_size, toy_model, out), nprocs=world_size)
    results = {world_size: torch.load(out / f"world{world_size}rank0.pt", weights_only=False) for world_size in WORLDS}
    results["out"] = out
    return results


@pytest.fixture(scope="module")
def plain(toy_model) -> Curve:
    """The yardstick: one process, no packing, full logits, torch's AdamW and clipping, the whole batch at once."""
    config = learners_config()
    model = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )
    curve = Curve([], [], [], {})
    # cosine from 1e-2 after a warm-up of 2 steps: half, full, cos(0), cos(pi/2)
    for lr, groups in zip((0.5e-2, 1e-2, 1e-2, 0.5e-2), batches(), strict=True):
        loss = d2o.loss(build_group_tensors(groups, plain_logprobs(model, groups)), D2O).loss_G.mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        curve.losses.append(loss.item())
        curve.grad_norms.append(norm.item())
        curve.lrs.append(lr)
    curve.weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert min(curve.grad_norms) > config.max_grad_norm, "clipping must be active in every step"
    return curve


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize(("stage", "budget"), FLOAT32_CASES)
def test_any_stage_ranks_and_micro_batches_learn_what_a_plain_loop_learns(ranks, plain, world_size, stage, budget):
    curve = ranks[world_size]["float32", stage, budget]
    assert curve.losses == pytest.approx(plain.losses, rel=1e-5)
    assert curve.grad_norms == pytest.approx(plain.grad_norms, rel=1e-4)
    assert curve.lrs == pytest.approx(plain.lrs)
    assert curve.weights.keys() == plain.weights.keys()
    for name, weight in plain.weights.items():
        torch.testing.assert_close(curve.weights[name], weight, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("stage", BFLOAT16_STAGES)
def test_bfloat16_follows_float32_and_its_copy_is_the_rounded_master(ranks, plain, world_size, stage):
    curve = ranks[world_size]["bfloat16", stage]
    masters = ranks[world_size]["masters", stage]
    assert curve.losses == pytest.approx(plain.losses, rel=0.05)
    for name, weight in curve.weights.items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, masters[name].to(torch.bfloat16))
    assert any(not torch.equal(weight.float(), masters[name]) for name, weight in curve.weights.items())


def distance(weights: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum((weights[name].double() - base[name].double()).square().sum().item() for name in base))


@pytest.mark.parametrize("world_size", WORLDS)
def test_the_ranks_parts_of_the_weight_change_add_up_to_the_distance_from_the_start(ranks, toy_model, world_size):
    base = dict(AutoModelForCausalLM.from_pretrained(toy_model).named_parameters())
    for case in FLOAT32_CASES:
        curve = ranks[world_size]["float32", *case]
        assert curve.weight_change == pytest.approx(distance(curve.weights, base), rel=1e-5), case
    rounded = {name: weight.bfloat16() for name, weight in base.items()}
    for stage in BFLOAT16_STAGES:
        masters = ranks[world_size]["masters", stage]
        change = ranks[world_size]["bfloat16", stage].weight_change
        assert change == pytest.approx(distance(masters, rounded), rel=1e-5), (
            "of the masters: bfloat16 loses small steps"
        )


@pytest.mark.parametrize("world_size", WORLDS)
def test_lora_trains_the_same_under_both_shardings_and_publishes_original_names(ranks, plain, toy_model, world_size):
    curves = [ranks[world_size]["lora", stage] for stage in LORA_STAGES]
    base = dict(AutoModelForCausalLM.from_pretrained(toy_model).named_parameters())
    assert curves[0].losses == pytest.approx(curves[1].losses, rel=1e-5)
    for curve in curves:
        assert curve.weights.keys() == base.keys()
        changed = {name.split(".")[-2] for name in base if not torch.equal(curve.weights[name], base[name])}
        assert changed == {"q_proj", "down_proj"}
    torch.testing.assert_close(curves[0].weights, curves[1].weights, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("world_size", WORLDS)
def test_an_exported_folder_loads_in_transformers_with_the_same_weights_and_chat_template(ranks, toy_model, world_size):
    folder = ranks["out"] / f"exported{world_size}"
    model = AutoModelForCausalLM.from_pretrained(folder)
    weights = ranks[world_size]["export"]
    assert {name for name, _ in model.named_parameters()} == weights.keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.use_cache
    assert AutoTokenizer.from_pretrained(folder).chat_template == AutoTokenizer.from_pretrained(toy_model).chat_template
    assert [path.name for path in folder.parent.glob(".exported*")] == []  # no half-written folder stays behind


def test_an_exported_folder_loads_in_vllm_and_answers_as_transformers_does(ranks, toy_model, tmp_path):
    folder = ranks["out"] / "exported1"
    torch.multiprocessing.spawn(vllm_worker.answer, args=(folder, tmp_path / "answers.json"), nprocs=1)
    answers = [tuple(answer) for answer in json.loads((tmp_path / "answers.json").read_text())]
    trained, untrained = (
        [
            greedy(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), context)
            for context in CONTEXTS
        ]
        for path in (folder, toy_model)
    )
    assert answers == trained
    assert answers != untrained, "four steps changed what it says"


@pytest.mark.parametrize("world_size", WORLDS)
def test_token_log_probs_come_per_response_in_order_and_add_up(ranks, world_size):
    per_token, sums = ranks[world_size]["token_logprobs"]
    responses = [response for group in batches()[0] for response in group.responses]
    assert [len(tokens) for tokens in per_token] == [len(response.token_ids) for response in responses]
    torch.testing.assert_close(torch.stack([tokens.sum() for tokens in per_token]), sums)


def test_zero_0_with_bfloat16_is_refused_before_anything_is_loaded():
    with pytest.raises(ConfigError, match=r"learners\.zero_stage=0 with bfloat16"):
        DeepSpeedEngine("nowhere", config=LearnersConfig(zero_stage=0), dtype=torch.bfloat16, seed=0)


def test_the_learning_rate_warms_up_then_follows_its_schedule():
    def curve(schedule):
        config = LearnersConfig(steps=10, lr=1, warmup_frac=0.2, lr_schedule=schedule)
        return [lr_at(step, config) for step in range(10)]

    assert curve("constant") == [0.5] + [1] * 9
    assert curve("linear") == [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert curve("cosine")[6] == pytest.approx(0.5)  # halfway through the 8 steps after warm-up
    assert curve("cosine")[3] == pytest.approx((1 + math.cos(math.pi / 8)) / 2)

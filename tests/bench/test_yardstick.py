"""The yardstick does the work that it is compared with: the same loss on the same rows as our own method."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from negalign_ray.actors.plan import Plan, make_plan
from negalign_ray.bench.measure import with_settings
from negalign_ray.bench.work import groups_of_tokens, next_orders, order_factory
from negalign_ray.bench.yardstick import HandWrittenLoop
from negalign_ray.config import Config
from negalign_ray.engines.frozen import FrozenModel
from negalign_ray.methods import d2o
from negalign_ray.methods.groups import build_group_tensors
from negalign_ray.records import Group, Response, Role
from tests.bench.settings import TOY_SETTINGS


@pytest.fixture(scope="module")
def plan(toy_model: Path) -> Plan:
    return make_plan(with_settings(Config(), TOY_SETTINGS, {"model": {"path": str(toy_model)}}))


@pytest.fixture(scope="module")
def loop(plan: Plan) -> HandWrittenLoop:
    torch.manual_seed(0)
    return HandWrittenLoop(plan, dtype=torch.float32)


def test_its_loss_is_ours_on_the_same_answers(plan: Plan, toy_model: Path, loop: HandWrittenLoop):
    orders = next_orders(order_factory(plan, num_samples=2), 2)
    answers = [[10, 20, 30], [40], [50, 60], [70, 80, 2]]
    with torch.no_grad():  # policy and reference must differ, or every loss is ln 2
        for parameter in loop._model.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    before = {name: parameter.clone() for name, parameter in loop._model.named_parameters()}
    loop._model.save_pretrained(toy_model.parent / "perturbed")

    loss, _ = loop._train(orders, answers)

    groups = _as_groups(orders, answers)
    references = _logprobs(toy_model, groups)
    priced = [_with_references(group, values) for group, values in zip(groups, references, strict=True)]
    policy = torch.tensor([value for values in _logprobs(toy_model.parent / "perturbed", groups) for value in values])
    expected = d2o.loss(build_group_tensors(priced, policy), plan.config.method).loss_G.mean()
    assert loss == pytest.approx(expected.item(), abs=1e-4)
    assert abs(loss - 0.6931) > 1e-3
    assert any(not torch.equal(before[name], parameter) for name, parameter in loop._model.named_parameters())


def test_a_step_reports_what_it_did(plan: Plan, loop: HandWrittenLoop):
    step = loop.step(next_orders(order_factory(plan, num_samples=2), 2))
    assert 4 <= step.sampled_tokens <= 4 * plan.config.sampling.max_new_tokens
    assert step.trained_tokens > step.sampled_tokens
    assert step.seconds == pytest.approx(step.generate_s + step.train_s)


def test_made_up_groups_reach_the_wanted_tokens_with_real_prompts(plan: Plan):
    groups = groups_of_tokens(plan.data.train, min_tokens=900, num_samples=3, new_tokens=5, vocab_size=304)
    assert sum(group.num_tokens for group in groups) >= 900 > sum(group.num_tokens for group in groups[:-1])
    assert groups[0].prompt == plan.data.train[0]
    assert [len(sample.token_ids) for sample in groups[0].samples] == [5, 5, 5]


def _as_groups(orders, answers) -> list[Group]:
    remaining = iter(answers)
    groups = []
    for order in orders:
        negative = next(response for response in order.prompt.responses if response.role is Role.NEGATIVE)
        samples = [Response(Role.SAMPLE, tuple(next(remaining)), "") for _ in order.requests]
        groups.append(Group(order.order_id, order.prompt, (negative, *samples)))
    return groups


def _logprobs(path: Path, groups: list[Group]) -> list[list[float]]:
    model = FrozenModel(path, dtype="float32", threads=1, micro_batch_tokens=4096, max_row_tokens=1024)
    return model.response_logprobs(groups)


def _with_references(group: Group, values: list[float]) -> Group:
    priced = [
        replace(response, ref_logprobs={"rpos": value, "rneg": value})
        for response, value in zip(group.responses, values, strict=True)
    ]
    return replace(group, responses=tuple(priced))

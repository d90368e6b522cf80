"""FrozenModel prices responses as a plain forward pass would, whatever the batching."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from negalign_ray.engines.frozen import FrozenModel
from negalign_ray.engines.weights import WeightBundle, read_safetensors
from negalign_ray.errors import WeightUpdateError
from negalign_ray.records import Group, Prompt, Response, Role
from tests.toy import make_toy_model

BATCHING = {"dtype": "float32", "threads": 1}


def group(order_id: int, prompt: tuple[int, ...], *answers: tuple[int, ...]) -> Group:
    responses = tuple(Response(Role.NEGATIVE, token_ids, text="") for token_ids in answers)
    return Group(order_id, Prompt(order_id, "", (), prompt, ()), responses)


GROUPS = [
    group(0, (1, 40, 41), (50, 51, 2), (60, 2), (50, 51, 2)),
    group(1, tuple(range(30, 60)), (90, 91, 92, 93, 2)),
    group(2, (1, 99)),  # nothing to price
    group(3, (1, 7, 8), (), (200, 201)),  # an empty answer has log-prob 0
]


@pytest.fixture(scope="module")
def frozen(toy_model):
    return FrozenModel(toy_model, micro_batch_tokens=64, max_row_tokens=16, **BATCHING)


@torch.no_grad()
def logprob_rows(folder, prompt, answer):
    """[len(answer), vocabulary] log-probs of a plain forward pass."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)


def test_summed_logprobs_equal_a_plain_forward_pass_in_the_order_of_the_responses(frozen, toy_model):
    priced = frozen.response_logprobs(GROUPS)
    assert [len(values) for values in priced] == [3, 1, 0, 2]
    for one, values in zip(GROUPS, priced, strict=True):
        for response, value in zip(one.responses, values, strict=True):
            rows = logprob_rows(toy_model, one.prompt.token_ids, response.token_ids)
            expected = sum(row[token].item() for row, token in zip(rows, response.token_ids, strict=True))
            assert value == pytest.approx(expected, abs=1e-3)
    assert priced[0][0] == pytest.approx(priced[0][2], abs=1e-4)
    assert priced[3][0] == 0.0


def test_summed_entropies_equal_a_plain_forward_pass(frozen, toy_model):
    measured = frozen.response_entropies(GROUPS)
    assert [len(values) for values in measured] == [3, 1, 0, 2]
    for one, values in zip(GROUPS, measured, strict=True):
        for response, value in zip(one.responses, values, strict=True):
            rows = logprob_rows(toy_model, one.prompt.token_ids, response.token_ids)
            assert value == pytest.approx(-(rows.exp() * rows).sum().item(), abs=1e-3)


@pytest.mark.parametrize(("micro_batch_tokens", "max_row_tokens"), [(1, 1), (20, 64), (4096, 512)])
def test_batching_does_not_change_the_logprobs(frozen, toy_model, micro_batch_tokens, max_row_tokens):
    other = FrozenModel(
        toy_model, micro_batch_tokens=micro_batch_tokens, max_row_tokens=max_row_tokens, **BATCHING
    ).response_logprobs(GROUPS)
    for ours, theirs in zip(frozen.response_logprobs(GROUPS), other, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)


def test_after_an_update_it_prices_as_the_new_model_and_confirms_its_checksum(toy_model, tmp_path):
    frozen = FrozenModel(toy_model, micro_batch_tokens=64, max_row_tokens=16, **BATCHING)
    folder = make_toy_model(tmp_path / "other", seed=1)
    bundle = WeightBundle.from_tensors(list(read_safetensors(folder, tied=True)), version=4)
    before = frozen.response_logprobs(GROUPS)
    assert frozen.load_weights(bundle) == bundle.checksum
    other = FrozenModel(folder, micro_batch_tokens=64, max_row_tokens=16, **BATCHING)
    assert frozen.response_logprobs(GROUPS) == other.response_logprobs(GROUPS) != before


def test_a_damaged_or_incomplete_update_is_refused_in_the_name_of_the_reference(toy_model):
    frozen = FrozenModel(toy_model, micro_batch_tokens=64, max_row_tokens=16, **BATCHING)
    bundle = WeightBundle.from_tensors(list(read_safetensors(toy_model, tied=True)), version=4)
    buffer = bundle.buffer.copy()
    buffer[0] ^= 1
    with pytest.raises(WeightUpdateError, match=r"reference\[0\] v4: loaded weights have checksum"):
        frozen.load_weights(replace(bundle, buffer=buffer))
    with pytest.raises(WeightUpdateError, match="differ in 1 weights"):
        frozen.load_weights(replace(bundle, index=bundle.index[1:]))

"""The states a diagnosis reads are what the output head reads at the last token, in a plain forward pass."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from negalign_ray.engines.frozen import FrozenModel
from tests.engines.test_frozen import GROUPS


@pytest.mark.parametrize(("micro_batch_tokens", "max_row_tokens"), [(1, 1), (64, 16), (4096, 512)])
@torch.no_grad()
def test_the_state_of_the_last_token_whatever_the_batching(toy_model, micro_batch_tokens, max_row_tokens):
    frozen = FrozenModel(
        toy_model, micro_batch_tokens=micro_batch_tokens, max_row_tokens=max_row_tokens, dtype="float32", threads=1
    )
    plain = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32).eval()
    read: list[torch.Tensor] = []
    plain.lm_head.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0][0, -1]))
    states = frozen.last_states(GROUPS)
    assert [len(states_RH) for states_RH in states] == [3, 1, 0, 2]
    for group, states_RH in zip(GROUPS, states, strict=True):
        for response, state_H in zip(group.responses, states_RH, strict=True):
            plain(torch.tensor([[*group.prompt.token_ids, *response.token_ids]]))
            torch.testing.assert_close(state_H, read[-1], atol=1e-4, rtol=1e-4)

"""Chunked log-probs equal log_softmax, values and gradients."""

import math

import pytest
import torch
from torch import nn

from negalign_ray.models.logprob_head import LogprobHead, next_token_entropies, token_logprobs


def inputs(*, positions=7, hidden=5, vocabulary=11, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(positions, hidden, generator=generator, dtype=dtype).requires_grad_()
    w = torch.randn(vocabulary, hidden, generator=generator, dtype=dtype).requires_grad_()
    t = torch.randint(vocabulary, (positions,), generator=generator)
    return h, w, t


def test_uniform_logits_give_minus_log_of_the_vocabulary():
    logprob_P = token_logprobs(torch.zeros(3, 2), torch.ones(4, 2), torch.tensor([0, 1, 3]), chunk_tokens=2)
    assert logprob_P.tolist() == pytest.approx([-1.3862944] * 3)  # -ln 4


@pytest.mark.parametrize("kept_bytes", [0, 10**6])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 7, 100])
def test_values_and_gradients_equal_log_softmax_for_any_chunk_kept_or_computed_again(chunk_tokens, kept_bytes):
    h, w, t = inputs()
    weight_P = torch.linspace(-2, 1, 7)
    expected = torch.log_softmax(h @ w.t(), -1).gather(1, t[:, None]).squeeze(1)
    expected_grads = torch.autograd.grad((expected * weight_P).sum(), (h, w))

    actual = token_logprobs(h, w, t, chunk_tokens=chunk_tokens, kept_bytes=kept_bytes)
    grads = torch.autograd.grad((actual * weight_P).sum(), (h, w))

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(grads, expected_grads)


@pytest.mark.parametrize("kept_bytes", [0, 10**6])
def test_gradcheck_passes_in_double_precision(kept_bytes):
    h, w, t = inputs(dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: token_logprobs(h, w, t, chunk_tokens=3, kept_bytes=kept_bytes), (h, w))


def test_logits_of_a_thousand_do_not_overflow():
    h = torch.tensor([[1000.0]], requires_grad=True)
    logprob = token_logprobs(h, torch.tensor([[1.0], [-1.0]]), torch.tensor([1]), chunk_tokens=8)
    logprob.sum().backward()
    assert logprob.item() == -2000.0
    assert h.grad.item() == pytest.approx(-2.0)


def test_a_frozen_weight_gets_no_gradient():
    h, w, t = inputs()
    token_logprobs(h, w.detach(), t, chunk_tokens=4).sum().backward()
    assert h.grad is not None


def test_no_positions_give_no_log_probs_and_zero_gradients():
    h, w, t = inputs(positions=0)
    token_logprobs(h, w, t, chunk_tokens=4).sum().backward()
    assert torch.equal(w.grad, torch.zeros_like(w))


def test_bfloat16_inputs_give_float32_log_probs_near_the_exact_ones():
    h, w, t = inputs()
    exact = torch.log_softmax(h @ w.t(), -1).gather(1, t[:, None]).squeeze(1)
    actual = token_logprobs(h.bfloat16(), w.bfloat16(), t, chunk_tokens=4)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, exact, atol=0.1, rtol=0)


def test_the_head_shares_its_parameter_and_still_gives_plain_logits():
    linear = nn.Linear(5, 11, bias=False)
    head = LogprobHead(linear, chunk_tokens=4)
    x = torch.randn(2, 5)
    assert head.weight is linear.weight
    assert [name for name, _ in head.named_parameters()] == ["weight"]
    torch.testing.assert_close(head(x), linear(x))


def test_entropies_are_those_of_a_softmax_worked_out_by_hand():
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)], [0.0, 2000.0]])
    entropy_P = next_token_entropies(logits, torch.eye(2), chunk_tokens=2)
    assert entropy_P.tolist() == pytest.approx([math.log(2), math.log(4) - 0.75 * math.log(3), 0.0])


@pytest.mark.parametrize("chunk_tokens", [1, 3, 100])
def test_entropies_do_not_depend_on_the_chunks(chunk_tokens):
    h, w, _ = inputs()
    logprobs = torch.log_softmax(h @ w.t(), -1)
    expected = -(logprobs.exp() * logprobs).sum(-1)
    torch.testing.assert_close(next_token_entropies(h, w, chunk_tokens=chunk_tokens), expected.detach())

"""Log-probs of given tokens straight from hidden states: the [positions, vocabulary] logits never exist at once.

For a vocabulary of 49,152 and 2,048 positions the float32 logits, their softmax and its gradient would take 1.2 GB.
Here each chunk of positions is projected, reduced to one number per position and dropped; backward projects it again.

# Axes: P = positions (C of them in a chunk), H = hidden size, V = vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class TokenLogprobs(torch.autograd.Function):
    """`log_softmax(hidden @ weight.T)[target]` -> [P]; float32, or float64 for float64 inputs."""

    @staticmethod
    def forward(ctx: Any, hidden_PH: Tensor, weight_VH: Tensor, target_P: Tensor, chunk_tokens: int) -> Tensor:
        accumulate = torch.promote_types(hidden_PH.dtype, torch.float32)
        normaliser_P = hidden_PH.new_empty(hidden_PH.shape[0], dtype=accumulate)
        logprob_P = torch.empty_like(normaliser_P)
        for chunk in _chunks(hidden_PH.shape[0], chunk_tokens):
            logits_CV = (hidden_PH[chunk] @ weight_VH.t()).to(accumulate)
            chosen_C = logits_CV.gather(1, target_P[chunk, None]).squeeze(1)
            normaliser_P[chunk] = _logsumexp_(logits_CV)
            logprob_P[chunk] = chosen_C - normaliser_P[chunk]
        ctx.save_for_backward(hidden_PH, weight_VH, target_P, normaliser_P)
        ctx.chunk_tokens = chunk_tokens
        return logprob_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_PH, weight_VH, target_P, normaliser_P = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden_PH = torch.empty_like(hidden_PH) if need_hidden else None
        grad_weight_VH = torch.zeros_like(weight_VH) if need_weight else None
        for chunk in _chunks(hidden_PH.shape[0], ctx.chunk_tokens):
            # d logprob / d logits = onehot(target) - softmax; every step works in place on the one chunk of logits.
            grad_CV = (hidden_PH[chunk] @ weight_VH.t()).to(normaliser_P.dtype)
            grad_CV.sub_(normaliser_P[chunk, None]).exp_().mul_(-grad_P[chunk, None])
            grad_CV.scatter_add_(1, target_P[chunk, None], grad_P[chunk, None].to(grad_CV.dtype))
            grad_CV = grad_CV.to(hidden_PH.dtype)
            if grad_hidden_PH is not None:
                grad_hidden_PH[chunk] = grad_CV @ weight_VH
            if grad_weight_VH is not None:
                grad_weight_VH.addmm_(grad_CV.t(), hidden_PH[chunk])
        return grad_hidden_PH, grad_weight_VH, None, None


def _logsumexp_(logits_CV: Tensor) -> Tensor:
    """`logsumexp(-1)` that overwrites its input: torch's own allocates a second tensor of that size."""
    largest_C1 = logits_CV.amax(-1, keepdim=True)
    return logits_CV.sub_(largest_C1).exp_().sum(-1).log_().add_(largest_C1.squeeze(1))


def _chunks(length: int, size: int) -> list[slice]:
    """Slices of at most `size`, as equal as possible: 1100 positions at 1024 are 2 x 550."""
    count = -(-length // size)
    return [slice(length * i // count, length * (i + 1) // count) for i in range(count)]


class LogprobHead(nn.Linear):
    """An `lm_head` that can also price tokens. It shares the Parameter of the head it replaces.

    The pricing happens inside this module's forward, because ZeRO-3 gathers a sharded weight only around the forward
    and backward of the module that owns it.
    """

    def __init__(self, head: nn.Linear, *, chunk_tokens: int):
        nn.Module.__init__(self)  # not Linear's: it would allocate a second [V, H] weight
        self.in_features, self.out_features = head.in_features, head.out_features
        self.weight, self.bias = head.weight, None
        self.chunk_tokens = chunk_tokens

    def forward(self, hidden_PH: Tensor, target_P: Tensor | None = None) -> Tensor:
        """Log-probs [P] of the targets; plain logits without them."""
        if target_P is None:
            return nn.functional.linear(hidden_PH, self.weight)
        return TokenLogprobs.apply(hidden_PH, self.weight, target_P, self.chunk_tokens)

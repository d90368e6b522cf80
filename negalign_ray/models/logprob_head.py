"""Log-probs of given tokens straight from hidden states: the [positions, vocabulary] logits never exist at once.

For a vocabulary of 49,152 and 2,048 positions the float32 logits, their softmax and its gradient would take 1.2 GB.
Here each chunk of positions is projected and reduced to one number per position. What backward needs of it, the
exponentials, is kept where that is cheap (it saves a third matrix product), else computed again.

# Axes: P = positions (C of them in a chunk), H = hidden size, V = vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

KEPT_BYTES = 512 * 2**20  # exponentials of one call that may wait for backward


def token_logprobs(
    hidden_PH: Tensor, weight_VH: Tensor, target_P: Tensor, *, chunk_tokens: int, kept_bytes: int = KEPT_BYTES
) -> Tensor:
    """`log_softmax(hidden @ weight.T)[target]` -> [P] in nats; float32, or float64 for float64 inputs."""
    total_bytes = hidden_PH.shape[0] * weight_VH.shape[0] * hidden_PH.element_size()
    keep = torch.is_grad_enabled() and total_bytes <= kept_bytes
    return _TokenLogprobs.apply(hidden_PH, weight_VH, target_P, chunk_tokens, keep)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_PH: Tensor, weight_VH: Tensor, target_P: Tensor, chunk_tokens: int, keep: bool
    ) -> Tensor:
        wide = torch.promote_types(hidden_PH.dtype, torch.float32)
        largest_P = hidden_PH.new_empty(hidden_PH.shape[0], dtype=wide)
        total_P, chosen_P = torch.empty_like(largest_P), torch.empty_like(largest_P)
        kept_CV: list[Tensor] = []
        for chunk in _chunks(hidden_PH.shape[0], chunk_tokens):
            logits_CV = (hidden_PH[chunk] @ weight_VH.t()).to(wide)
            chosen_P[chunk] = logits_CV.gather(1, target_P[chunk, None]).squeeze(1)
            largest_P[chunk] = logits_CV.amax(1)
            exp_CV = logits_CV.sub_(largest_P[chunk, None]).exp_()  # in place: logits are the largest tensor there is
            total_P[chunk] = exp_CV.sum(1)
            if keep:
                kept_CV.append(exp_CV.to(hidden_PH.dtype))
        ctx.save_for_backward(hidden_PH, weight_VH, target_P, largest_P, total_P)
        ctx.chunk_tokens, ctx.kept_CV = chunk_tokens, kept_CV
        return chosen_P - largest_P - total_P.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        hidden_PH, weight_VH, target_P, largest_P, total_P = ctx.saved_tensors
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden_PH = torch.empty_like(hidden_PH) if need_hidden else None
        grad_weight_VH = torch.zeros_like(weight_VH) if need_weight else None
        scale_P1 = (-grad_P / total_P)[:, None]
        for index, chunk in enumerate(_chunks(hidden_PH.shape[0], ctx.chunk_tokens)):
            # d logprob / d logits = onehot(target) - exp / total
            if ctx.kept_CV:
                grad_CV = ctx.kept_CV[index] * scale_P1[chunk].to(hidden_PH.dtype)
            else:
                logits_CV = (hidden_PH[chunk] @ weight_VH.t()).to(largest_P.dtype)
                grad_CV = logits_CV.sub_(largest_P[chunk, None]).exp_().mul_(scale_P1[chunk]).to(hidden_PH.dtype)
            grad_CV.scatter_add_(1, target_P[chunk, None], grad_P[chunk, None].to(grad_CV.dtype))
            if grad_hidden_PH is not None:
                grad_hidden_PH[chunk] = grad_CV @ weight_VH
            if grad_weight_VH is not None:
                grad_weight_VH.addmm_(grad_CV.t(), hidden_PH[chunk])
        return grad_hidden_PH, grad_weight_VH, None, None, None


@torch.no_grad()
def next_token_entropies(hidden_PH: Tensor, weight_VH: Tensor, *, chunk_tokens: int) -> Tensor:
    """Entropy [P] in nats of `softmax(hidden @ weight.T)`: log total - sum of share * logit. Types as above.

    Logits (0, 0) -> ln 2; logits (0, ln 3) -> shares 1/4 and 3/4, entropy ln 4 - 3/4 ln 3 = 0.562.
    """
    wide = torch.promote_types(hidden_PH.dtype, torch.float32)
    entropy_P = hidden_PH.new_empty(hidden_PH.shape[0], dtype=wide)
    for chunk in _chunks(hidden_PH.shape[0], chunk_tokens):
        logprobs_CV = (hidden_PH[chunk] @ weight_VH.t()).to(wide).log_softmax(1)
        shares_CV = logprobs_CV.exp()
        # A share of 0 with its log of -inf adds nothing; multiplied, it would be nan.
        entropy_P[chunk] = -torch.where(shares_CV > 0, shares_CV * logprobs_CV, 0.0).sum(1)
    return entropy_P


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
        self.weight = head.weight
        self.register_parameter("bias", None)
        self.chunk_tokens = chunk_tokens

    def forward(self, hidden_PH: Tensor, target_P: Tensor | None = None) -> Tensor:
        """Log-probs [P] of the targets; plain logits without them."""
        if target_P is None:
            return nn.functional.linear(hidden_PH, self.weight)
        return token_logprobs(hidden_PH, self.weight, target_P, chunk_tokens=self.chunk_tokens)

    def entropies(self, hidden_PH: Tensor) -> Tensor:
        """Of the next token, [P] in nats. Not for a weight that ZeRO-3 has sharded."""
        return next_token_entropies(hidden_PH, self.weight, chunk_tokens=self.chunk_tokens)

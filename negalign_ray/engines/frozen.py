"""A frozen model that prices responses: the references during training, and both sides of the evaluation.

# Axes: P = response tokens in a micro-batch (C of them in a chunk), V = vocabulary, N = responses.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from negalign_ray.data.collate import PackedRows, first_fit, pack_rows
from negalign_ray.errors import ModelError
from negalign_ray.models.loading import load_causal_lm
from negalign_ray.models.policy import ResponseLogprobs
from negalign_ray.records import Group

TORCH_DTYPE = {"bfloat16": torch.bfloat16, "float32": torch.float32}
KL_CHUNK_TOKENS = 256  # positions whose full distributions of both models exist at once


class FrozenModel:
    """LogprobEngine (engines/protocols.py). Weights never change after construction.

    `micro_batch_tokens` bounds the tokens of one forward pass (one longer group is computed alone), `max_row_tokens`
    the length up to which responses of one prompt share a row. Raises ModelError (models/loading.py, models/policy.py).
    """

    def __init__(
        self, model_path: Path | str, *, dtype: str, threads: int, micro_batch_tokens: int, max_row_tokens: int
    ):
        torch.set_num_threads(threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = load_causal_lm(model_path, TORCH_DTYPE[dtype])
        torch.nn.Module.to(model, self._device)
        self._policy = ResponseLogprobs(model.requires_grad_(False)).eval()
        self._micro_batch_tokens, self._max_row_tokens = micro_batch_tokens, max_row_tokens

    @torch.inference_mode()
    def response_logprobs(self, groups: Sequence[Group]) -> list[list[float]]:
        """See the Protocol; nats, in the order of each group's responses."""
        results: list[list[float]] = [[] for _ in groups]
        for members, rows in self._micro_batches(groups):
            flat = iter(self._policy(rows).tolist())
            for i in members:
                results[i] = [next(flat) for _ in groups[i].responses]
        return results

    @torch.inference_mode()
    def token_kl(self, groups: Sequence[Group], other: "FrozenModel") -> list[float | None]:
        """Mean over a group's response tokens of KL(self || other) at that position, in nats, exact over the whole
        vocabulary; None for a group without response tokens. Both models must share the vocabulary (ModelError)."""
        results: list[float | None] = [None for _ in groups]
        for members, rows in self._micro_batches(groups):
            kl_P = self._kl(rows, other)
            group_N = torch.tensor([i for i in members for _ in groups[i].responses], device=kl_P.device)
            group_P = group_N[rows.response_P]
            for i in members:
                mine = kl_P[group_P == i]
                results[i] = mine.mean().item() if mine.numel() else None
        return results

    def _kl(self, rows: PackedRows, other: "FrozenModel") -> Tensor:
        """KL per response token [P], float32."""
        ours_PH, theirs_PH = self._policy.response_states(rows), other._policy.response_states(rows)
        ours, theirs = self._policy.model.get_output_embeddings(), other._policy.model.get_output_embeddings()
        if ours.weight.shape[0] != theirs.weight.shape[0]:
            raise ModelError(
                f"KL needs one vocabulary, but the models have {ours.weight.shape[0]} and {theirs.weight.shape[0]} "
                "tokens; compare models of one family."
            )
        parts = [torch.zeros(0, device=self._device)]
        for ours_CH, theirs_CH in zip(ours_PH.split(KL_CHUNK_TOKENS), theirs_PH.split(KL_CHUNK_TOKENS), strict=True):
            p_CV, q_CV = ours(ours_CH).float().log_softmax(-1), theirs(theirs_CH).float().log_softmax(-1)
            # kl_div, not exp(p) * (p - q): 0 * (-inf - q) would be nan. Rounding may leave -1e-8 where p = q.
            parts.append(
                torch.nn.functional.kl_div(q_CV, p_CV, reduction="none", log_target=True).sum(-1).clamp_(min=0)
            )
        return torch.cat(parts)

    def _micro_batches(self, groups: Sequence[Group]):
        """(indices of groups, their rows) in bins of at most `micro_batch_tokens`."""
        for members in first_fit([group.num_tokens for group in groups], self._micro_batch_tokens):
            rows = pack_rows([groups[i] for i in members], max_row_tokens=self._max_row_tokens)
            if rows.num_tokens:
                yield members, rows.to(self._device)

"""A model that prices responses and is never trained: the references, and both sides of the evaluation.

# Axes: P = response tokens in a micro-batch, H = hidden size, N = responses in a micro-batch, R = responses of a group.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from negalign_ray.config import Config
from negalign_ray.data.collate import PackedRows, first_fit, pack_rows
from negalign_ray.engines.weights import WeightBundle, load_in_place
from negalign_ray.models.device import device_of
from negalign_ray.models.loading import load_causal_lm
from negalign_ray.models.policy import ResponseLogprobs
from negalign_ray.records import Group

TORCH_DTYPE = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class FrozenModel:
    """LogprobEngine (engines/protocols.py). Weights change through `load_weights` only.

    `micro_batch_tokens` bounds the tokens of one forward pass (one longer group is computed alone), `max_row_tokens`
    the length up to which responses of one prompt share a row. Raises ModelError (models/loading.py, models/policy.py).
    """

    def __init__(
        self,
        model_path: Path | str,
        *,
        dtype: str,
        threads: int,
        micro_batch_tokens: int,
        max_row_tokens: int,
        gpus: float = 0.0,
    ):
        torch.set_num_threads(threads)
        self._device = torch.device(device_of("references", gpus=gpus))
        model = load_causal_lm(model_path, TORCH_DTYPE[dtype])
        torch.nn.Module.to(model, self._device)
        self._policy = ResponseLogprobs(model.requires_grad_(False)).eval()
        self._micro_batch_tokens, self._max_row_tokens = micro_batch_tokens, max_row_tokens
        self._version: int | None = None  # None: the weights that came with the model

    @classmethod
    def of_run(cls, config: Config, model_path: Path | str, *, dtype: str) -> "FrozenModel":
        """With the device, threads and bounds that the run gives its references."""
        return cls(
            model_path,
            dtype=dtype,
            threads=config.references.threads,
            micro_batch_tokens=config.references.micro_batch_tokens,
            max_row_tokens=config.learners.max_row_tokens,
            gpus=config.references.gpus,
        )

    def response_logprobs(self, groups: Sequence[Group]) -> list[list[float]]:
        """See the Protocol; nats, in the order of each group's responses."""
        return self._of_responses(groups, self._policy)

    def response_entropies(self, groups: Sequence[Group]) -> list[list[float]]:
        """Likewise the entropies of the next token, in nats, summed over each response's tokens."""
        return self._of_responses(groups, self._policy.entropies)

    @torch.inference_mode()
    def _of_responses(self, groups: Sequence[Group], measure: Callable[[PackedRows], Tensor]) -> list[list[float]]:
        results: list[list[float]] = [[] for _ in groups]
        for members, rows in self._micro_batches(groups):
            flat = iter(measure(rows).tolist())
            for i in members:
                results[i] = [next(flat) for _ in groups[i].responses]
        return results

    @torch.inference_mode()
    def last_states(self, groups: Sequence[Group]) -> list[Tensor]:
        """What the output head reads at the last token of prompt and response: [R, H] per group, float32, on CPU."""
        results: list[Tensor] = [torch.empty(0) for _ in groups]
        # A head reads the state of a token to predict the next one, so each response gets one more token, of any kind.
        longer = [
            replace(group, responses=tuple(replace(r, token_ids=(*r.token_ids, 0)) for r in group.responses))
            for group in groups
        ]
        for members, rows in self._micro_batches(longer):
            states_PH = self._policy.response_states(rows)
            last_N = torch.zeros(rows.num_responses, dtype=torch.int64, device=self._device)
            position_P = torch.arange(len(rows.response_P), device=self._device)
            last_N = last_N.scatter_reduce(0, rows.response_P, position_P, "amax")  # tokens of a response are in order
            states_NH = states_PH[last_N].float().cpu()
            parts = states_NH.split([len(longer[i].responses) for i in members])
            for i, part_RH in zip(members, parts, strict=True):
                results[i] = part_RH
        return results

    def load_weights(self, bundle: WeightBundle) -> int:
        """Become the model of `bundle`; returns the checksum read back. WeightUpdateError: replace this one."""
        before, self._version = self._version, bundle.version
        return load_in_place(self._policy.model, bundle, role="reference", before=before)

    def _micro_batches(self, groups: Sequence[Group]) -> Iterator[tuple[list[int], PackedRows]]:
        """(indices of groups, their rows) in bins of at most `micro_batch_tokens`."""
        for members in first_fit([group.num_tokens for group in groups], self._micro_batch_tokens):
            rows = pack_rows([groups[i] for i in members], max_row_tokens=self._max_row_tokens)
            if rows.num_tokens:
                yield members, rows.to(self._device)

"""The `transformers` engine of a sampler, for machines without vLLM: batched decoding with a key/value cache.

# Axes: B = requests decoded together, T = tokens of the longest context, V = vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, DynamicCache

from negalign_ray.config import SamplersConfig
from negalign_ray.engines.generation import MAX_SEED, CheckedEngine
from negalign_ray.engines.weights import WeightBundle, checksum_of, load_in_place
from negalign_ray.models.device import device_of
from negalign_ray.models.dtype import ComputeDtype
from negalign_ray.models.loading import load_causal_lm
from negalign_ray.records import Generation, SampleRequest, SamplingSpec


@dataclass
class _Answer:
    """One request while it is decoded."""

    request: SampleRequest
    generator: torch.Generator  # its own, so that its draws do not depend on what else is in the batch
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = "length"


class TransformersEngine(CheckedEngine):
    """GenerationEngine (engines/protocols.py) on `transformers`.

    Raises ModelError (models/loading.py) for a model that is missing, is not in safetensors or needs code of its own.
    """

    def _start(self, model_path: Path, config: SamplersConfig, *, dtype: ComputeDtype, seed: int) -> None:
        del dtype, seed  # every draw has the seed of its request
        torch.set_num_threads(config.threads)
        self._device = torch.device(device_of("samplers", gpus=config.gpus))
        self._model = load_causal_lm(model_path, self._dtype)
        torch.nn.Module.to(self._model, self._device)
        self._tokenizer = AutoTokenizer.from_pretrained(model_path, local_files_only=True, trust_remote_code=False)
        self._max_num_seqs = config.max_num_seqs

    def checksum(self) -> int:
        """See the Protocol."""
        return checksum_of(self._model.named_parameters())

    def _answer(self, requests: Sequence[SampleRequest], spec: SamplingSpec) -> list[Generation]:
        answers = [_Answer(request, self._generator(request.seed)) for request in requests]
        by_length = sorted(answers, key=lambda answer: len(answer.request.context_ids))  # little padding
        for start in range(0, len(by_length), self._max_num_seqs):
            self._decode(by_length[start : start + self._max_num_seqs], spec)
        return [self._generation(answer) for answer in answers]

    def _load(self, bundle: WeightBundle, *, before: int | None) -> int:
        return load_in_place(self._model, bundle, role="sampler", before=before)

    def _generator(self, seed: int) -> torch.Generator:
        return torch.Generator(device=self._device).manual_seed(seed & MAX_SEED)

    @torch.inference_mode()
    def _decode(self, active: list[_Answer], spec: SamplingSpec) -> None:
        """Decode until every answer has ended; finished rows leave the batch."""
        contexts = [answer.request.context_ids for answer in active]
        longest = max(map(len, contexts))
        ids_BT = torch.tensor([[0] * (longest - len(c)) + list(c) for c in contexts], device=self._device)
        mask_BT = torch.tensor([[0] * (longest - len(c)) + [1] * len(c) for c in contexts], device=self._device)
        position_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self._model.config)
        for _ in range(spec.max_new_tokens):
            logits_BV = self._model(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                position_ids=position_BT,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            logprobs_BV = logits_BV.float().log_softmax(-1)
            token_B = _draw(logprobs_BV, [answer.generator for answer in active], spec)
            chosen_B = logprobs_BV.gather(1, token_B[:, None])[:, 0].tolist()
            running = [
                self._append(answer, token, logprob)
                for answer, token, logprob in zip(active, token_B.tolist(), chosen_B, strict=True)
            ]
            if not any(running):
                return
            if not all(running):
                keep_B = torch.tensor(running, device=self._device).nonzero()[:, 0]
                active = [answer for answer, alive in zip(active, running, strict=True) if alive]
                cache.batch_select_indices(keep_B)
                token_B, mask_BT, position_BT = token_B[keep_B], mask_BT[keep_B], position_BT[keep_B]
            ids_BT = token_B[:, None]
            mask_BT = torch.cat((mask_BT, torch.ones_like(ids_BT)), dim=1)
            position_BT = position_BT[:, -1:] + 1

    def _append(self, answer: _Answer, token: int, logprob: float) -> bool:
        """Add one token; False when it ends the answer (it is kept)."""
        answer.token_ids.append(token)
        answer.logprobs.append(logprob)
        if token in self._stop_ids:
            answer.finish_reason = "stop"
        return token not in self._stop_ids

    def _generation(self, answer: _Answer) -> Generation:
        return Generation(
            token_ids=tuple(answer.token_ids),
            logprobs=tuple(answer.logprobs),
            finish_reason=answer.finish_reason,
            text=str(self._tokenizer.decode(answer.token_ids, skip_special_tokens=True)),
        )


def _draw(logprobs_BV: Tensor, generators: Sequence[torch.Generator], spec: SamplingSpec) -> Tensor:
    """Next tokens [B]. Exponential noise: argmax(p / e) with e ~ Exp(1) is distributed as p (the Gumbel-max trick)."""
    if spec.temperature == 0:
        return logprobs_BV.argmax(-1)
    probs_BV = (logprobs_BV / spec.temperature).softmax(-1)
    if spec.top_p < 1:
        probs_BV = _nucleus(probs_BV, spec.top_p)
    noise_BV = torch.empty_like(probs_BV)
    for row, generator in zip(noise_BV, generators, strict=True):
        row.exponential_(generator=generator)
    return (probs_BV / noise_BV).argmax(-1)


def _nucleus(probs_BV: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of most probable tokens whose mass reaches `top_p` (never empty).

    [0.5, 0.3, 0.2] at 0.6 -> [0.5, 0.3, 0]
    """
    sorted_BV, order_BV = probs_BV.sort(-1, descending=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    return probs_BV.masked_fill(
        torch.zeros_like(order_BV, dtype=torch.bool).scatter(1, order_BV, before_BV >= top_p), 0
    )

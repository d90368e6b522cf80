"""Summed log-probs of responses under a causal LM: the one quantity that every loss, reference and measure needs.

Tokens of all rows go through the model end to end as one sequence, without padding; attention alone works row by row.

# Axes: S = tokens of all rows, T = tokens of one row, H = hidden size, A = attention heads, D = their size,
# P = predicted response tokens, N = responses.
"""

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from negalign_ray.data.collate import PackedRows
from negalign_ray.errors import ModelError
from negalign_ray.models.exactness import plain_logprobs, require_exact, trial
from negalign_ray.models.logprob_head import LogprobHead

# Settings of heads that do more than a matrix product, with the value at which they do nothing.
HEAD_SETTINGS = {
    "final_logit_softcapping": None,
    "logits_soft_cap": None,
    "logit_scale": 1,
    "logits_scaling": 1,
    "lm_head_multiplier": 1,
}
ROW_ATTENTION = "negalign_rows"  # the name it is registered under in transformers
MIN_COMPLEMENT = 1e-5  # 1 - p below which log(1 - p) is continued by its tangent
LOG_2 = math.log(2)
CHANGING_ROPES = {"longrope", "dynamic"}
ATTENTION_KINDS = {"full_attention", "sliding_attention"}


class ResponseLogprobs(nn.Module):
    """Wraps a Hugging Face causal LM and replaces its `lm_head` by one that prices tokens (same Parameter, same name).

    ModelError: the model's head or attention is one that we would not compute exactly, by its settings or in a trial
    (exactness.py; so wrap it before it is sharded). Dropout is switched off, and the wrapped model can no longer be
    called on its own: its attention needs to be told the rows.
    """

    def __init__(self, model: PreTrainedModel, *, chunk_tokens: int = 1024, gradient_checkpointing: bool = False):
        super().__init__()
        _require_plain_head(model)
        _require_maskable_attention(model)
        _switch_dropout_off(model)
        self.max_position = _max_position(model)
        with trial(model):
            expected_3 = plain_logprobs(model, max_tokens=self.max_position)
        model.set_output_embeddings(LogprobHead(model.get_output_embeddings(), chunk_tokens=chunk_tokens))
        if gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.set_attn_implementation(ROW_ATTENTION)
        self.model = model
        with trial(model):
            require_exact(model, self, expected_3, max_tokens=self.max_position)

    def forward(self, rows: PackedRows, *, per_token: bool = False) -> Tensor:
        """Summed log-probs [N] in nats, float32; with `per_token`, [P] in the order of `rows.response_P`."""
        logprob_P = self.model.get_output_embeddings()(self.response_states(rows), rows.target_P)
        return logprob_P if per_token else sum_by_response(logprob_P, rows)

    def entropies(self, rows: PackedRows) -> Tensor:
        """Entropy of the next token in nats, float32, summed over the tokens of each response [N]."""
        return sum_by_response(self.model.get_output_embeddings().entropies(self.response_states(rows)), rows)

    def response_states(self, rows: PackedRows) -> Tensor:
        """What the head reads [P, H]: the last hidden state at every position that predicts a response token."""
        if rows.max_position >= self.max_position:
            raise ModelError(
                f"a prompt with its response has {rows.max_position + 1} tokens, but the model attends to "
                f"{self.max_position}; lower data.max_prompt_tokens or the response length."
            )
        # Additive masks once, because SDPA would convert boolean ones again in every layer.
        dtype = self.model.dtype
        row_masks = [
            torch.zeros_like(mask_TT, dtype=dtype).masked_fill_(~mask_TT, torch.finfo(dtype).min)[None, None]
            for mask_TT in rows.masks_TT
        ]
        hidden_SH = self.model.base_model(
            input_ids=rows.input_ids_S[None],
            position_ids=rows.position_ids_S[None],
            use_cache=False,
            row_masks=row_masks,
        ).last_hidden_state[0]
        return hidden_SH[rows.source_P]


def sum_by_response(values_P: Tensor, rows: PackedRows) -> Tensor:
    """Values of response tokens -> their sums [N] over each response."""
    return values_P.new_zeros(rows.num_responses).index_add(0, rows.response_P.to(values_P.device), values_P)


def log_complement(logprob: Tensor) -> Tensor:
    """log(1 - p) of p = exp(logprob), any shape, in nats; finite, with a slope of at most 1e5, for every logprob <= 0.

        p = 0.5 -> log 0.5;  p = 0.999999 -> log 1e-5 - 0.9 (true: log 1e-6);  p = 1 -> log 1e-5 - 1 (true: -inf)

    Above p = 1 - 1e-5 it goes on as its own tangent. In float32 a larger p says little about 1 - p, and the gradient
    -p / (1 - p) would multiply that error. Not a plain clamp, as in the code of arXiv 1908.04319: its zero gradient
    would leave alone just those tokens of which the model is surest.
    """
    ceiling = math.log1p(-MIN_COMPLEMENT)
    clamped = logprob.clamp(max=ceiling)
    # Two forms, each exact where 1 - p is not the small difference of two large numbers. Both are finite everywhere
    # here, so that where() passes no 0 * inf back.
    value = torch.where(clamped > -LOG_2, torch.log(-torch.expm1(clamped)), torch.log1p(-torch.exp(clamped)))
    return value - (logprob - ceiling).relu() * (1 - MIN_COMPLEMENT) / MIN_COMPLEMENT


def _row_attention(
    module: nn.Module,
    query_1ASD: Tensor,
    key_1ASD: Tensor,
    value_1ASD: Tensor,
    attention_mask: Tensor | None,
    *,
    row_masks: list[Tensor],
    **settings: Any,
) -> tuple[Tensor, None]:
    """SDPA of each row by itself -> [1, S, A, D]; `row_masks` are additive, [1, 1, T, T].

    ModelError: an attention mask of the model's own; it was given none, so this one holds a bias (Doge's does).
    """
    if attention_mask is not None:
        raise ModelError(f"{type(module).__name__} adds a bias of its own to attention, which we do not compute.")
    outputs = []
    start = 0
    for mask_11TT in row_masks:
        row = slice(start, start + mask_11TT.shape[-1])
        output, _ = sdpa_attention_forward(
            module, query_1ASD[:, :, row], key_1ASD[:, :, row], value_1ASD[:, :, row], mask_11TT, **settings
        )
        outputs.append(output)
        start = row.stop
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(ROW_ATTENTION, _row_attention)


def _require_plain_head(model: PreTrainedModel) -> None:
    name = type(model).__name__
    config = model.config.get_text_config().to_dict()
    for setting, neutral in HEAD_SETTINGS.items():
        value = config.get(setting, neutral)
        if value not in (neutral, None):
            raise ModelError(
                f"{name} has {setting}={value}: its log-probs are not those of a plain matrix product, which is all "
                "that we compute exactly; choose a model without it."
            )
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise ModelError(
            f"{name}: its output head is {type(head).__name__}, not a plain nn.Linear; choose another model."
        )
    if head.bias is not None:
        raise ModelError(f"{name}: its lm_head has a bias, which we do not compute; choose another model.")


def _require_maskable_attention(model: PreTrainedModel) -> None:
    name = type(model).__name__
    parameters = inspect.signature(model.base_model.forward).parameters
    if "position_ids" not in parameters:
        raise ModelError(
            f"{name} takes no position_ids, so answers to one prompt cannot share a row; choose a decoder-only "
            "transformer with rotary or learned positions."
        )
    kinds = set(model.config.get_text_config().to_dict().get("layer_types") or ()) - ATTENTION_KINDS
    if kinds:
        raise ModelError(
            f"{name} has layers of kind {sorted(kinds)}, which ignore attention masks; choose another model."
        )


def _max_position(model: PreTrainedModel) -> int:
    """Positions at which our mask equals the model's own: its context, or its sliding window where it has one.

    Rotations of LongRoPE and dynamic RoPE depend on the longest sequence of the call beyond the length that the model
    was first trained for, so there a log-prob would depend on what shares its micro-batch.
    """
    config = model.config.get_text_config().to_dict()
    limits = [config.get("max_position_embeddings")]
    rope = config.get("rope_parameters") or {}
    for parameters in (rope, *(kind for kind in rope.values() if isinstance(kind, dict))):
        if parameters.get("rope_type") in CHANGING_ROPES:
            first_length = "original_max_position_embeddings"
            limits.append(parameters.get(first_length) or config.get(first_length))
    if config.get("use_sliding_window", True):
        limits.append(config.get("sliding_window"))
    return min((limit for limit in limits if limit), default=2**31)


def _switch_dropout_off(model: PreTrainedModel) -> None:
    """Losses compare the policy with frozen references: noise on one side only would be read as a change."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(vars(module).get("attention_dropout"), float):
            vars(module)["attention_dropout"] = 0.0  # the plain float that attention modules keep beside their weights

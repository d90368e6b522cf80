"""Matrix FLOPs that one training step needs, counted from the rows it computes.

    6 * W * S   +   6 * V * H * P   +   12 * L * A * D * (pairs of positions that may attend)

W = weights of all linear layers but the head, S = computed tokens (a shared prompt counts once), V * H = weights of
the head, P = response positions (the only ones whose logits are computed), L layers of A heads of size D. Each weight
costs a multiplication and an addition per token in forward, and twice that in backward (for inputs and for weights);
each pair costs 2 * A * D for its score and as much for its value in forward, and twice that in backward. Not counted,
though done: attention over masked pairs, norms, activations, softmax, the optimizer, and what is computed again.

# Axes: S = tokens of all rows, P = predicted response tokens, T = tokens of one row.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from negalign_ray.data.collate import PackedRows


@dataclass(frozen=True, slots=True)
class ModelShape:
    linear_weights: int  # W
    vocab_size: int  # V
    hidden_size: int  # H
    attention_width: int  # L * A * D

    @classmethod
    def of(cls, model_path: Path | str) -> "ModelShape":
        """Of a model folder; nothing is loaded but its config."""
        config = AutoConfig.from_pretrained(model_path, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        head = model.get_output_embeddings()
        linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]
        text = config.get_text_config()
        settings = text.to_dict()
        head_dim = settings.get("head_dim") or text.hidden_size // text.num_attention_heads
        return cls(
            linear_weights=sum(module.weight.numel() for module in linear),
            vocab_size=head.weight.shape[0],
            hidden_size=head.weight.shape[1],
            attention_width=text.num_hidden_layers * text.num_attention_heads * head_dim,
        )


def train_flops(shape: ModelShape, rows: PackedRows) -> int:
    """Forward and backward of these rows; see the module's docstring."""
    pairs = sum(int(mask_TT.sum()) for mask_TT in rows.masks_TT)
    return (
        6 * shape.linear_weights * rows.num_tokens
        + 6 * shape.vocab_size * shape.hidden_size * len(rows.target_P)
        + 12 * shape.attention_width * pairs
    )

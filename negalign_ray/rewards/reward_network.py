"""A backbone, a pooled vector per text, and one linear output per head: what is trained, saved and scored with.

    tokens --AutoModel--> states [B, T, H] --pooling--> features [B, H] --linear--> rewards [B, C]

Pooling: the last token's state for causal models (the only one that has seen the whole text), the mean over tokens for
encoders. On disk: `backbone/` (Hugging Face format with its tokenizer), `heads.safetensors`, `reward_card.json`.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from negalign_ray.errors import ModelError
from negalign_ray.rewards.hf_classifier import max_tokens_of
from negalign_ray.rewards.pair_input import PairEncoder
from negalign_ray.rewards.protocol import TextInput
from negalign_ray.rewards.reward_card import BACKBONE_FOLDER, HEADS_FILE, RewardCard

# Axes: B = rows of a batch, T = tokens, H = hidden size, C = heads.
Pooling = Literal["mean", "last"]


class RewardNetwork(nn.Module):
    """Rewards are raw: no squashing, float32. Heads start at zero, so every answer starts with reward 0."""

    def __init__(self, backbone: Any, *, num_heads: int, pooling: Pooling) -> None:
        super().__init__()
        self.backbone, self.pooling = backbone, pooling
        self.heads = nn.Linear(backbone.config.get_text_config().hidden_size, num_heads)
        nn.init.zeros_(self.heads.weight)
        nn.init.zeros_(self.heads.bias)

    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        """[B, H] float32; padding is on the right."""
        states_BTH = self.backbone(**inputs).last_hidden_state.float()
        mask_BT = inputs["attention_mask"]
        if self.pooling == "last":
            last_B = mask_BT.sum(1) - 1
            return states_BTH[torch.arange(len(last_B), device=last_B.device), last_B]
        weights_BT1 = mask_BT.unsqueeze(-1).to(states_BTH.dtype)
        return (states_BTH * weights_BT1).sum(1) / weights_BT1.sum(1)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """[B, C]"""
        return self.heads(self.features(inputs))


def check_backbone(folder: Path | str) -> None:
    """ModelError where the config already says that `load_backbone` will refuse; reads no weights."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"model.path={str(folder)!r} cannot be read without remote code: {error}") from error
    if config.is_encoder_decoder:
        raise ModelError(
            f"model.path={str(folder)!r} is an encoder-decoder ({config.model_type}); a reward model needs an encoder "
            "(BERT kind) or a causal model (Llama kind)."
        )


def load_backbone(folder: Path | str) -> Any:
    """An encoder or causal model without its output layer, float32, in evaluation mode.

    ModelError: not loadable as safetensors without remote code, weights missing, or encoder and decoder in one.
    """
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    check_backbone(folder)
    disable_progress_bar()  # a bar per rank would tear the terminal apart
    try:
        model, info = AutoModel.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.path={str(folder)!r} cannot be loaded as a backbone in safetensors without remote code: {error}"
        ) from error
    # A pooler (BERT) is not used: we pool the states ourselves, and most checkpoints do not even hold its weights.
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:  # transformers would fill them with random numbers and go on
        raise ModelError(f"model.path={str(folder)!r} lacks the weights {missing[:4]}; use a complete checkpoint.")
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    return model.eval()


def is_causal(config: Any) -> bool:
    """Whether a token sees only those before it: a language model of a kind that has no masked-token variant."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = config.model_type
    return kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def make_encoder(folder: Path | str, config: Any, *, text_input: TextInput, max_tokens: int) -> PairEncoder:
    """The tokenizer in `folder`; `max_tokens` is lowered to what the model takes. ModelError when there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"model.path={str(folder)!r}: no tokenizer could be loaded from it ({error}).") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    limit = min(max_tokens, max_tokens_of(config, tokenizer))
    return PairEncoder(tokenizer, text_input=text_input, max_tokens=limit, is_causal=is_causal(config))


def save_reward_model(folder: Path, *, network: RewardNetwork, encoder: PairEncoder, card: RewardCard) -> None:
    """The card is written last: a folder with a card is complete."""
    network.backbone.save_pretrained(folder / BACKBONE_FOLDER)
    encoder.tokenizer.save_pretrained(folder / BACKBONE_FOLDER)
    tensors = {name: values.detach().cpu().contiguous() for name, values in network.heads.state_dict().items()}
    save_file(tensors, folder / HEADS_FILE)
    card.write(folder)


def load_reward_model(folder: Path, card: RewardCard) -> tuple[RewardNetwork, PairEncoder]:
    """What `save_reward_model` wrote; ModelError when the tensors are not those of the card."""
    backbone = load_backbone(folder / BACKBONE_FOLDER)
    network = RewardNetwork(backbone, num_heads=len(card.heads), pooling=card.pooling)
    try:
        network.heads.load_state_dict(load_file(folder / HEADS_FILE))
    except (SafetensorError, RuntimeError) as error:
        raise ModelError(f"{folder / HEADS_FILE} does not hold {len(card.heads)} heads ({error}).") from error
    encoder = make_encoder(
        folder / BACKBONE_FOLDER, backbone.config, text_input=card.text_input, max_tokens=card.max_tokens
    )
    return network.eval(), encoder

"""LD-Align's guide (arXiv 2404.06390): phi packs an answer into one vector, psi rebuilds the answer from that vector.

    phi:  prompt, answer --> vector        psi:  log p(answer | prompt, vector)

[choice] The vector is added to every input embedding of psi, so that the vector of zeros is psi without a guide: the
control that says whether the vectors mean anything. [choice] phi averages its last states over the answer.
[choice] Both are small new transformers that read and write the policy's own token embeddings, which stay frozen: only
about a million parameters are fitted, whatever the vocabulary. With `guide.backbone` both are fine-tuned copies of it.

# Axes: B = (prompt, answer) rows, padded to T tokens; V = vocabulary, H = size of a token embedding, D = hidden size of
# the transformers, Z = numbers in the vector, P = answer tokens of all rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaModel

from negalign_ray.config import GuideConfig
from negalign_ray.errors import DataError, ModelError
from negalign_ray.models.loading import load_causal_lm
from negalign_ray.models.logprob_head import token_logprobs
from negalign_ray.records import Group

LOGIT_CHUNK_TOKENS = 256  # answer tokens whose logits exist at once
MAX_POSITIONS = 1 << 15


@dataclass(frozen=True)
class GuideRows:
    """Prompts with one answer each, padded on the right: no causal model sees the padding from a real token."""

    ids_BT: Tensor  # int64
    is_answer_BT: Tensor  # bool

    @classmethod
    def of(cls, groups: Sequence[Group]) -> "GuideRows":
        """One row per response, in order. DataError: a prompt without tokens, because nothing would predict."""
        rows = [(group.prompt.token_ids, response.token_ids) for group in groups for response in group.responses]
        longest = max((len(prompt) + len(answer) for prompt, answer in rows), default=0)
        ids_BT = torch.zeros(len(rows), longest, dtype=torch.long)
        is_answer_BT = torch.zeros(len(rows), longest, dtype=torch.bool)
        for row, (prompt, answer) in enumerate(rows):
            if not prompt:
                raise DataError("a prompt has no tokens; give it text or a chat template with one.")
            ids_BT[row, : len(prompt) + len(answer)] = torch.tensor((*prompt, *answer))
            is_answer_BT[row, len(prompt) : len(prompt) + len(answer)] = True
        return cls(ids_BT, is_answer_BT)

    def to(self, device: torch.device) -> "GuideRows":
        return replace(self, ids_BT=self.ids_BT.to(device), is_answer_BT=self.is_answer_BT.to(device))


class GuideModel(nn.Module):
    """Encoder and decoder. Only what `requires_grad` is fitted; embeddings and output head are frozen."""

    head_VH: Tensor  # a buffer

    def __init__(self, *, encoder: "Half", decoder: "Half", write_out: nn.Module, head_VH: Tensor, latent_size: int):
        super().__init__()
        self.encoder, self.decoder, self.write_out = encoder, decoder, write_out
        self.to_latent = nn.Linear(encoder.width, latent_size, bias=False)
        self.from_latent = nn.Linear(latent_size, decoder.width, bias=False)  # no bias: zeros in, zeros out
        self.register_buffer("head_VH", head_VH, persistent=False)

    def encode(self, rows: GuideRows) -> Tensor:
        """phi(x, y) -> [B, Z]; zeros for an empty answer."""
        states_BTD = self.encoder(rows.ids_BT)
        answer_BT1 = rows.is_answer_BT.unsqueeze(-1)
        mean_BD = (states_BTD * answer_BT1).sum(1) / answer_BT1.sum(1).clamp(min=1)
        return self.to_latent(mean_BD)

    def decode(self, rows: GuideRows, latent_BZ: Tensor) -> Tensor:
        """log p_psi(y | x, vector), summed over the answer -> [B] in nats, float32."""
        states_BTD = self.decoder(rows.ids_BT, shift_BD=self.from_latent(latent_BZ))
        predicts_BT = rows.is_answer_BT[:, 1:]  # the state before an answer token predicts it
        hidden_PH = self.write_out(states_BTD[:, :-1][predicts_BT])
        target_P = rows.ids_BT[:, 1:][predicts_BT]
        logprob_P = token_logprobs(hidden_PH, self.head_VH, target_P, chunk_tokens=LOGIT_CHUNK_TOKENS)
        row_P = predicts_BT.nonzero()[:, 0]
        return logprob_P.new_zeros(len(rows.ids_BT)).index_add(0, row_P, logprob_P)


class Half(nn.Module):
    """A causal transformer on frozen token embeddings: phi's or psi's."""

    def __init__(self, trunk: nn.Module, *, embedding: nn.Module, read_in: nn.Module):
        super().__init__()
        self.trunk, self.embedding, self.read_in = trunk, embedding, read_in
        self.width: int = trunk.config.hidden_size  # type: ignore[union-attr,assignment]

    def forward(self, ids_BT: Tensor, *, shift_BD: Tensor | None = None) -> Tensor:
        """Last hidden states [B, T, D]."""
        inputs_BTD = self.read_in(self.embedding(ids_BT))
        if shift_BD is not None:
            inputs_BTD = inputs_BTD + shift_BD.unsqueeze(1)
        return self.trunk(inputs_embeds=inputs_BTD, use_cache=False).last_hidden_state


class _Scaled(nn.Module):
    """A matrix product whose weights start as unit noise and are scaled down in use: one step of Adam, of the same size
    for every weight, then moves the outputs alike whatever the two widths are."""

    def __init__(self, num_in: int, num_out: int, *, scale: float):
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(num_out, num_in)), scale

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, self.weight) * self.scale


def make_guide(config: GuideConfig, *, model_path: Path, seed: int) -> GuideModel:
    """A guide that was never fitted, float32, on the CPU; the same arguments give the same weights.

    ModelError: the backbone cannot be loaded (models/loading.py).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.backbone is not None:
            return _on_backbone(Path(config.backbone), config)
        return _small(config, read_embedding(model_path))


def _small(config: GuideConfig, embedding_VH: Tensor) -> GuideModel:
    table_VH = embedding_VH.float()
    table_VH = table_VH / table_VH.square().mean().sqrt().clamp(min=1e-12)  # policies differ in the scale of theirs
    embedding = nn.Embedding.from_pretrained(table_VH, freeze=True)
    embedding_size, width = table_VH.shape[1], config.width

    def half() -> Half:
        trunk = LlamaModel(
            LlamaConfig(
                vocab_size=1,  # its own embedding is not used
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                max_position_embeddings=MAX_POSITIONS,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=None,
            )
        )
        trunk.embed_tokens.requires_grad_(False)
        return Half(trunk, embedding=embedding, read_in=_Scaled(embedding_size, width, scale=embedding_size**-0.5))

    return GuideModel(
        encoder=half(),
        decoder=half(),
        write_out=_Scaled(width, embedding_size, scale=(width * embedding_size) ** -0.5),
        head_VH=embedding.weight.detach(),
        latent_size=config.latent_size,
    )


def _on_backbone(folder: Path, config: GuideConfig) -> GuideModel:
    first, second = (load_causal_lm(folder, torch.float32) for _ in range(2))
    embedding = first.get_input_embeddings().requires_grad_(False)
    head_VH = first.get_output_embeddings().weight.detach()

    def half(model: Any) -> Half:
        model.set_input_embeddings(embedding)
        return Half(model.base_model, embedding=embedding, read_in=nn.Identity())

    return GuideModel(
        encoder=half(first),
        decoder=half(second),
        write_out=nn.Identity(),
        head_VH=head_VH,
        latent_size=config.latent_size,
    )


def read_embedding(folder: Path) -> Tensor:
    """The input embeddings [V, H] of a causal LM, and nothing else of it. ModelError: its safetensors lack them."""
    with torch.device("meta"):  # names and shapes without any memory
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    weight = model.get_input_embeddings().weight
    name = next(name for name, parameter in model.named_parameters() if parameter is weight)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if name in file.keys():  # noqa: SIM118 - not a dict
                return file.get_tensor(name)
    raise ModelError(f"{folder}: no *.safetensors there holds {name}, which the guide reads; check the model folder.")

"""A trained model as a Hugging Face folder that `transformers`, vLLM and lm_eval load as it is."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model",
)  # fmt: skip
WEIGHTS_PATTERN = "model{suffix}.safetensors"


def write_model_folder(
    path: Path, weights: Sequence[tuple[str, Tensor]], *, model: PreTrainedModel, tokenizer_folder: Path
) -> None:
    """Write to a temporary folder beside `path`, then rename: a reader never meets half a model.

    `weights`: (name, CPU tensor) of one dtype, tied ones once. An earlier `path` is replaced.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    named = {name: tensor.contiguous() for name, tensor in weights}
    _write_weights(partial, named)
    config = type(model.config).from_dict(model.config.to_dict())
    config.dtype = next(iter(named.values())).dtype
    config.use_cache = True  # the learner switched it off for itself
    config.architectures = [type(model).__name__]
    config.save_pretrained(partial)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(partial)
    for name in TOKENIZER_FILES:
        if (tokenizer_folder / name).is_file():
            shutil.copy2(tokenizer_folder / name, partial / name)
    _replace(partial, path)


def _write_weights(folder: Path, named: dict[str, Tensor]) -> None:
    split = split_torch_state_dict_into_shards(named, filename_pattern=WEIGHTS_PATTERN, max_shard_size="5GB")
    for file_name, names in split.filename_to_tensors.items():
        save_file({name: named[name] for name in names}, folder / file_name, metadata={"format": "pt"})
        os.chmod(folder / file_name, 0o644)  # safetensors writes owner-only files; other roles may run as other users
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True))


def _replace(partial: Path, path: Path) -> None:
    """rename() cannot replace a full folder, so an old one steps aside first."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    partial.rename(path)
    shutil.rmtree(old, ignore_errors=True)

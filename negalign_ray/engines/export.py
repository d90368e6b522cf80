"""A trained model as a Hugging Face folder that `transformers`, vLLM and lm_eval load as it is."""

import copy
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
    path: Path,
    weights: Sequence[tuple[str, Tensor]],
    *,
    model: PreTrainedModel,
    tokenizer_folder: Path,
    chat_template: str | None = None,
    end_ids: Sequence[int] = (),
) -> None:
    """Write to a temporary folder beside `path`, then rename: a reader never meets half a model.

    `weights`: (name, CPU tensor) of one dtype, tied ones once. An earlier `path` is replaced. `chat_template` takes the
    place of the tokenizer's; answers end at each of `end_ids`, and where they did.
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
        generation = copy.deepcopy(model.generation_config)
        generation.eos_token_id = _with_ends(generation.eos_token_id, end_ids)
        generation.save_pretrained(partial)
    for name in TOKENIZER_FILES:
        if (tokenizer_folder / name).is_file():
            shutil.copy2(tokenizer_folder / name, partial / name)
    if chat_template is not None:
        _set_chat_template(partial, chat_template)
    _replace(partial, path)


def _with_ends(known: int | list[int] | None, end_ids: Sequence[int]) -> int | list[int] | None:
    """2 and (2,) -> 2;  2 and (7, 2) -> [2, 7]"""
    before = known if isinstance(known, list) else [] if known is None else [known]
    missing = [token for token in end_ids if token not in before]
    return [*before, *missing] if missing else known


def _set_chat_template(folder: Path, template: str) -> None:
    """One file, and nothing that some reader would prefer to it."""
    (folder / "chat_template.json").unlink(missing_ok=True)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    path = folder / "tokenizer_config.json"
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
        if settings.pop("chat_template", None) is not None:
            path.write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")


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

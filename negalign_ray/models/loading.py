"""Causal LMs from a folder: safetensors only, no code from the folder is ever run."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from negalign_ray.errors import ModelError
from negalign_ray.models.derived import DERIVED_SUFFIXES


def load_causal_lm(folder: Path | str, dtype: torch.dtype) -> PreTrainedModel:
    """The model on the CPU in `dtype`, with SDPA attention, in evaluation mode.

    ModelError: no such folder, weights not in safetensors, code of its own needed, or weights whose names on disk
    are not those of the loaded model (samplers could not be updated by name).
    """
    folder = Path(folder)
    _check_folder(folder)
    disable_progress_bar()  # a bar per rank would tear the terminal apart
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except ValueError as error:  # no causal LM of that type, or none with masked attention
        raise ModelError(f"{folder} cannot be used as a policy or reference: {error}") from error
    model.config.use_cache = False
    _check_names(folder, model)
    return model.eval()


def _check_folder(folder: Path) -> None:
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise ModelError(f"{folder} is not a model folder (no config.json); give a folder in Hugging Face format.")
    config = json.loads(config_path.read_text())
    model_type = config.get("model_type")
    if model_type not in CONFIG_MAPPING:
        code = " and brings code of its own (auto_map), which we never run" if "auto_map" in config else ""
        raise ModelError(
            f"{folder}: the installed transformers has no model type {model_type!r}{code}; choose a supported model."
        )
    if not any(folder.glob("*.safetensors")):
        found = sorted(path.name for path in folder.glob("*.bin"))
        raise ModelError(
            f"{folder} has no *.safetensors (found: {', '.join(found) or 'no weights'}); .bin files can run code when "
            "loaded: convert them with save_pretrained(..., safe_serialization=True) where you trust them."
        )


def _check_names(folder: Path, model: PreTrainedModel) -> None:
    on_disk: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            on_disk |= set(file.keys())
    unknown = {name for name in on_disk - set(model.state_dict()) if not name.endswith(DERIVED_SUFFIXES)}
    if unknown:
        raise ModelError(
            f"{folder}: {type(model).__name__} renames or fuses weights when it loads them (for example "
            f"{min(unknown)}), so samplers could not be updated by name; choose another model."
        )

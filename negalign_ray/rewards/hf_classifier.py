"""A reward head that is a Hugging Face sequence classifier: the probability of one label."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from negalign_ray import hub
from negalign_ray.errors import ConfigError, ModelError
from negalign_ray.rewards.protocol import Pair, TextInput, checked_scores, score_error

# Axes: N = pairs in a call, B = pairs in a batch, T = tokens, C = classes.
logger = logging.getLogger(__name__)
UNBOUNDED_TOKENS = 1_000_000  # tokenizers without a limit report about 1e30
MAX_TOKENS = 2048  # longer texts are cut even where the model would take them


def check_classifier(target: str, label: str | None, *, head: str) -> None:
    """Cheap checks of a folder (config, safetensors, label). A hub name can be checked only by loading it."""
    folder = Path(target).expanduser()
    if not folder.is_dir():
        if target.count("/") > 1 or target.startswith((".", "~", "/")):
            raise ConfigError(f"head {head!r}: the folder {target!r} does not exist; correct target.")
        return
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ConfigError(f"head {head!r}: {config_file} does not exist; target must be a Hugging Face model folder.")
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"head {head!r}: {folder} holds no *.safetensors; save the model with safe_serialization=True."
        )
    names = json.loads(config_file.read_text(encoding="utf-8")).get("id2label")
    if label is not None and names is not None:
        label_index(list(names.values()), label, head=head)


def label_index(names: Sequence[str], label: str | None, *, head: str) -> int:
    """Column of `label`; the last class when None."""
    if label is None:
        return len(names) - 1
    if label not in names:
        raise ConfigError(f"head {head!r}: label={label!r} is not a class of the model; it has {list(names)}.")
    return list(names).index(label)


def _source(name: str, target: str) -> str:
    """`target`; where no hub answers its folder in the cache, since transformers would ask for more files there."""
    unreachable = None if Path(target).is_dir() else hub.why_unreachable()
    if unreachable is None:
        return target
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(target, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"head {name!r}: target={target!r} is no folder here, and the hub could not be asked for it "
            f"({unreachable}). Download it on a machine with access (`hf download NAME --local-dir FOLDER`) and set "
            "target to the folder."
        ) from error


@dataclass(frozen=True)
class HFClassifierHead:
    """Softmax over exclusive classes; sigmoid for a single logit or a multi-label model."""

    name: str
    text_input: TextInput
    model: Any
    tokenizer: Any
    column: int
    max_tokens: int
    batch_size: int
    device: str

    @classmethod
    def load(
        cls,
        name: str,
        target: str,
        *,
        label: str | None = None,
        text_input: TextInput = "response",
        batch_size: int = 32,
        device: str = "cpu",
    ) -> "HFClassifierHead":
        """ModelError when it cannot be loaded as safetensors without remote code, or has no trained classifier."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        source = _source(name, target)
        try:
            model, info = AutoModelForSequenceClassification.from_pretrained(
                source, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"head {name!r}: {target!r} cannot be loaded as a sequence classifier in safetensors without remote "
                f"code: {error}"
            ) from error
        if info["missing_keys"]:  # transformers would fill them with random numbers and go on
            raise ModelError(
                f"head {name!r}: {target!r} lacks the weights {sorted(info['missing_keys'])[:4]}; it is not a trained "
                "sequence classifier. Use a model that was saved with its classification head."
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.pad_token_id is None:  # decoders read the last token that is not padding
            model.config.pad_token_id = tokenizer.pad_token_id
        names = [model.config.id2label[index] for index in range(model.config.num_labels)]
        return cls(
            name=name,
            text_input=text_input,
            model=model.to(device).eval(),
            tokenizer=tokenizer,
            column=label_index(names, label, head=name),
            max_tokens=max_tokens_of(model.config, tokenizer),
            batch_size=batch_size,
            device=device,
        )

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """Batched by length, so that little padding is computed; texts over `max_tokens` are cut (logged)."""
        if not pairs:
            return []
        encoded = self._encode(pairs)
        order = sorted(range(len(pairs)), key=lambda index: len(encoded["input_ids"][index]))
        scores = [0.0] * len(pairs)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = {key: [values[row] for row in rows] for key, values in encoded.items()}
            for row, score in zip(rows, self._score_batch(batch), strict=True):
                scores[row] = score
        return checked_scores(self.name, scores, expected=len(pairs))

    def _encode(self, pairs: Sequence[Pair]) -> dict[str, list[list[int]]]:
        responses = [response for _, response in pairs]
        first = responses if self.text_input == "response" else [prompt for prompt, _ in pairs]
        second = None if self.text_input == "response" else responses
        encoded = self.tokenizer(first, second, truncation=True, max_length=self.max_tokens)
        num_cut = sum(len(ids) >= self.max_tokens for ids in encoded["input_ids"])
        if num_cut:
            logger.info(
                "head %r: %d of %d texts reach the limit of %d tokens", self.name, num_cut, len(pairs), self.max_tokens
            )
        return dict(encoded)

    @torch.inference_mode()
    def _score_batch(self, batch: dict[str, list[list[int]]]) -> list[float]:
        try:
            inputs_BT = self.tokenizer.pad(batch, return_tensors="pt").to(self.device)
            logits_BC = self.model(**inputs_BT).logits.float()
        except (RuntimeError, IndexError, ValueError) as error:
            raise score_error(self.name, f"the classifier failed: {type(error).__name__}: {error}") from error
        independent = logits_BC.shape[-1] == 1 or self.model.config.problem_type == "multi_label_classification"
        probabilities_BC = logits_BC.sigmoid() if independent else logits_BC.softmax(-1)
        return probabilities_BC[:, self.column].tolist()


def max_tokens_of(config: Any, tokenizer: Any) -> int:
    """Smallest of the limits that the model, the tokenizer and we set."""
    limits = [MAX_TOKENS]
    if tokenizer.model_max_length < UNBOUNDED_TOKENS:
        limits.append(tokenizer.model_max_length)
    positions = config.to_dict().get("max_position_embeddings")
    if positions:
        # RoBERTa counts positions from padding_idx + 1, so two of its 514 are never usable.
        offset = config.pad_token_id + 1 if config.model_type in {"roberta", "xlm-roberta", "camembert"} else 0
        limits.append(positions - offset)
    return min(limits)

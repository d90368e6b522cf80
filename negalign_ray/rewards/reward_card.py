"""The JSON card of a reward model: its heads, how it reads, what it was trained on. No torch, so a check is instant."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from negalign_ray.errors import ConfigError
from negalign_ray.rewards.protocol import TextInput

CARD_FILE, HEADS_FILE, BACKBONE_FOLDER = "reward_card.json", "heads.safetensors", "backbone"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class HeadCard:
    """One head. `temperature` divides its logit where a calibrated probability is wanted."""

    name: str
    direction: Literal["harm", "help"]
    objective: Literal["classification", "pairwise"]
    temperature: float = 1.0
    figures: dict[str, Any] | None = None  # held-out: AUROC, that of length alone, ECE; see reward_report.json


@dataclass(frozen=True)
class RewardCard:
    pooling: Literal["mean", "last"]
    text_input: TextInput
    max_tokens: int
    is_causal: bool
    heads: tuple[HeadCard, ...]
    settings: dict[str, Any]  # of the training, resolved
    data: dict[str, Any]  # sources, counts, sha256 of what was trained and measured on

    def write(self, folder: Path) -> None:
        text = json.dumps({"format": FORMAT_VERSION, **asdict(self)}, ensure_ascii=False, indent=2)
        (folder / CARD_FILE).write_text(text + "\n", encoding="utf-8")

    def column(self, label: str | None, *, head: str) -> int:
        """Number of the head called `label`, or of the only one. ConfigError lists the heads there are."""
        names = [card.name for card in self.heads]
        if label is None and len(names) == 1:
            return 0
        if label not in names:
            given = "label is not set" if label is None else f"label={label!r} is not a head of the model"
            raise ConfigError(f"head {head!r}: {given}; set label to one of {names}.")
        return names.index(label)


def read_card(folder: Path | str, *, head: str) -> RewardCard:
    """The card of a folder that `negalign-ray train-reward` wrote; ConfigError says what is missing or broken."""
    folder = Path(folder).expanduser()
    needed = (CARD_FILE, HEADS_FILE, f"{BACKBONE_FOLDER}/config.json")
    for name in needed:
        if not (folder / name).is_file():
            raise ConfigError(
                f"head {head!r}: {folder / name} does not exist; target must be a folder that "
                "`negalign-ray train-reward DATA OUT` wrote (OUT)."
            )
    if not any((folder / BACKBONE_FOLDER).glob("*.safetensors")):
        raise ConfigError(f"head {head!r}: {folder / BACKBONE_FOLDER} holds no *.safetensors; train it again.")
    try:
        values = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        version = values.pop("format")
        heads = tuple(HeadCard(**card) for card in values.pop("heads"))
        card = RewardCard(heads=heads, **values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"head {head!r}: {folder / CARD_FILE} cannot be read ({error}); train it again.") from error
    if version != FORMAT_VERSION:
        raise ConfigError(
            f"head {head!r}: {folder} has format {version}, this version reads {FORMAT_VERSION}; train it again."
        )
    return card


def check_reward_model(target: str, *, label: str | None, direction: str, head: str) -> None:
    """ConfigError unless `target` is a reward model with the head `label` and a high score means `direction`."""
    card = read_card(target, head=head)
    chosen = card.heads[card.column(label, head=head)]
    if chosen.direction != direction:
        raise ConfigError(
            f"head {head!r}: direction={direction!r}, but a high score of {chosen.name!r} in {target} means "
            f"{chosen.direction}; set direction: {chosen.direction}."
        )

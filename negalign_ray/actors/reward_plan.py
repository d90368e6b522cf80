"""All that `train-reward` decides before Ray starts: backbone found, data read and split, every head has what it needs.

files --> prompts --frac--> the reward model's share --heldout_frac--> training units | held-out units
                      `---> rest (OUT/rest.jsonl): prompts that the reward model never sees
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negalign_ray.config import DataConfig
from negalign_ray.data.answers import load_answers, with_ids_after
from negalign_ray.data.sources import source_name
from negalign_ray.data.split import split_by_prompt
from negalign_ray.errors import ConfigError, DataError
from negalign_ray.models.packaged import resolve_backbone
from negalign_ray.records import Prompt, Role
from negalign_ray.rewards.comparisons import ABSENT, Unit, make_unit, merge_units
from negalign_ray.rewards.reward_card import CARD_FILE
from negalign_ray.settings.reward import RewardHeadSpec, RewardTrainingConfig

MIN_TRAINING, MIN_HELDOUT = 10, 2  # answers of each class, or pairs, that every head must have


@dataclass(frozen=True)
class RewardPlan:
    config: RewardTrainingConfig
    out: Path  # absolute
    model_path: Path
    training: tuple[Unit, ...]
    heldout: tuple[Unit, ...]
    rest: tuple[Prompt, ...]  # of the main file
    data_card: dict[str, Any]


def make_reward_plan(config: RewardTrainingConfig, *, data: str, out: Path, overwrite: bool = False) -> RewardPlan:
    """Raises ConfigError, ModelError or DataError. Starts and writes nothing."""
    from negalign_ray.rewards.reward_network import check_backbone  # imports torch: seconds

    out = out.expanduser().resolve()
    if (out / CARD_FILE).exists() and not overwrite:
        raise ConfigError(f"OUT={str(out)!r} already holds a reward model; choose another folder, or add --overwrite.")
    model_path = resolve_backbone(config.model.path).resolve()
    check_backbone(model_path)
    files = list(dict.fromkeys([data, *(head.data for head in config.heads if head.data is not None)]))
    prompts: tuple[Prompt, ...] = ()
    file_of: dict[int, str] = {}
    for file in files:
        found = with_ids_after(load_answers(file, _data_config(config, file)), len(prompts))
        file_of |= {prompt.prompt_id: file for prompt in found}
        prompts += found
    rest, share = split_by_prompt(prompts, heldout_frac=config.data.frac, seed=config.seed)
    share = share[: config.data.limit]
    training, heldout = split_by_prompt(share, heldout_frac=config.data.heldout_frac, seed=config.seed)
    sources = [head.data or data for head in config.heads]
    plan = RewardPlan(
        config=config,
        out=out,
        model_path=model_path,
        training=_units(training, config.heads, sources=sources, file_of=file_of),
        heldout=_units(heldout, config.heads, sources=sources, file_of=file_of),
        rest=tuple(prompt for prompt in rest if file_of[prompt.prompt_id] == data),
        data_card=_data_card(files, training=training, heldout=heldout, num_rest=len(rest)),
    )
    for column, head in enumerate(config.heads):
        _require(plan.training, head, column, source=sources[column], minimum=MIN_TRAINING, part="to train on")
        _require(plan.heldout, head, column, source=sources[column], minimum=MIN_HELDOUT, part="held out")
    return plan


def _data_config(config: RewardTrainingConfig, path: str) -> DataConfig:
    data = config.data
    return DataConfig(
        path=path,
        format=data.format,
        split=data.split,
        behaviour_column=data.behaviour_column,
        on_bad_row=data.on_bad_row,
    )


def _units(
    prompts: Sequence[Prompt], heads: Sequence[RewardHeadSpec], *, sources: Sequence[str], file_of: dict[int, str]
) -> tuple[Unit, ...]:
    """One unit per conversation, whichever files and heads it serves; none for a prompt that teaches no head."""
    parts: dict[Any, list[Unit]] = {}
    for prompt in prompts:
        for column, head in enumerate(heads):
            if sources[column] == file_of[prompt.prompt_id]:
                unit = make_unit(prompt, head=column, objective=head.objective, direction=head.direction)
                if unit.items:
                    parts.setdefault(prompt.messages, []).append(unit)
    return tuple(merge_units(units) for units in parts.values())


def _require(units: Sequence[Unit], head: RewardHeadSpec, column: int, *, source: str, minimum: int, part: str) -> None:
    """DataError unless the head has `minimum` items of each kind that it needs."""
    items = [item for unit in units for item in unit.items if item.head == column]
    remedy = "Give it more rows, another `data` file for this head, or change data.frac, data.limit, data.heldout_frac."
    where = f"heads[{column}] ({head.name!r}, {head.objective}) on {source_name(source)}"
    if head.objective == "pairwise":
        if len(items) < minimum:
            raise DataError(
                f"{where}: it needs at least {minimum} pairs of a good and a bad answer to one prompt {part} and there "
                f"are {len(items)}. Where good and bad answers belong to different prompts, set heads[{column}]."
                f"objective=classification. {remedy}"
            )
        return
    num_high = sum(item.low == ABSENT for item in items)
    num_low = len(items) - num_high
    if min(num_high, num_low) < minimum:
        bad, good = (num_high, num_low) if head.direction == "harm" else (num_low, num_high)
        raise DataError(
            f"{where}: it needs at least {minimum} bad and {minimum} good answers {part} and there are {bad} bad, "
            f"{good} good ones. {remedy}"
        )


def _data_card(
    files: Sequence[str], *, training: Sequence[Prompt], heldout: Sequence[Prompt], num_rest: int
) -> dict[str, Any]:
    """Counts, and a fingerprint of every prompt and answer that was trained or measured on (order does not matter)."""
    share = [*training, *heldout]
    roles = Counter(response.role for prompt in share for response in prompt.responses)
    lines = sorted(
        json.dumps([prompt.messages, response.role, response.text]) for prompt in share for response in prompt.responses
    )
    return {
        "sources": [source_name(file) for file in files],
        "sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "num_training_prompts": len(training),
        "num_heldout_prompts": len(heldout),
        "num_rest_prompts": num_rest,
        "num_negative_answers": roles[Role.NEGATIVE],
        "num_positive_answers": roles[Role.POSITIVE],
    }

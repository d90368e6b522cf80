"""`negalign-ray data judge`: a judge of one's own from a share of a file, and the rest of the file to train on.

rows.jsonl --split by prompt--> judge share --fit--> OUT/judge/      (kind: linear, target: OUT/judge)
                                the rest    ------> OUT/rest.jsonl   (data.path: OUT/rest.jsonl)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from negalign_ray.config import Config
from negalign_ray.data.answers import write_unpaired
from negalign_ray.data.chat import load_chat
from negalign_ray.data.prepare import prepare, require_sound_rows
from negalign_ray.data.split import opening, split_off
from negalign_ray.models.packaged import resolve_model
from negalign_ray.records import Prompt, Role
from negalign_ray.rewards.judge import fit_judge
from negalign_ray.rewards.linear import LinearCard
from negalign_ray.rewards.protocol import TextInput, text_of


@dataclass(frozen=True)
class JudgeMade:
    folder: Path
    rest: Path
    card: LinearCard
    num_rest_prompts: int


def make_judge(config: Config, out: Path, *, judge_frac: float, text_input: TextInput) -> JudgeMade:
    """Split the prompts of `config.data.path`, fit on one part, write the other. Raises DataError."""
    chat = load_chat(resolve_model(config.model.path), template=config.model.chat_template)
    prepared = prepare(config.data.path, config=config.data, chat=chat)
    if config.data.on_bad_row == "refuse":
        require_sound_rows(prepared)
    for_judge, rest = split_off(prepared.prompts, frac=judge_frac, seed=config.run.seed)
    numbers = {name: number for number, name in enumerate(sorted({opening(p.messages) for p in for_judge}))}
    negatives = dict(_texts(for_judge, Role.NEGATIVE, text_input, numbers))
    benign = dict(_texts(for_judge, Role.POSITIVE, text_input, numbers))
    if config.data.on_bad_row == "skip":  # an answer that people judged both ways teaches nothing
        negatives, benign = _without(negatives, benign), _without(benign, negatives)
    head = fit_judge(negatives, benign, text_input=text_input, seed=config.run.seed)
    out.mkdir(parents=True, exist_ok=True)
    head.save(out / "judge")
    write_unpaired(rest, out / "rest.jsonl")
    return JudgeMade(out / "judge", out / "rest.jsonl", head.card, len(rest))


def _texts(
    prompts: Sequence[Prompt], role: Role, text_input: TextInput, numbers: Mapping[str, int]
) -> Iterator[tuple[str, int]]:
    """(text the judge reads, number of its prompt's opening)"""
    for prompt in prompts:
        for response in prompt.responses:
            if response.role is role:
                yield text_of((prompt.text, response.text), text_input), numbers[opening(prompt.messages)]


def _without(texts: dict[str, int], others: dict[str, int]) -> dict[str, int]:
    return {text: prompt_id for text, prompt_id in texts.items() if text not in others}

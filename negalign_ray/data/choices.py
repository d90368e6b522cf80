"""Multiple-choice questions: every choice is an answer to be priced, and the right one should be the most likely.

    {"question": "Predators eat", "choices": ["lions", "humans", "bunnies", "grass"], "answer": "C"}

`answer` counts from 0, or is a letter from A. In CSV files `choices` holds the list as JSON.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from negalign_ray.config import DataConfig
from negalign_ray.data.chat import ChatTokenizer
from negalign_ray.data.priced_rows import read_all, require_short, tokenise
from negalign_ray.data.sources import SourceRow
from negalign_ray.data.turns import BadRow, Kind, read_text
from negalign_ray.records import Prompt, Response, Role


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """`prompt.responses` are the choices in order, each with the end-of-turn token; `answer` is the right one's index.

    `prompt.prompt_id` is the number of the row.
    """

    prompt: Prompt
    answer: int


def load_choices(path: str | None, chat: ChatTokenizer, *, limits: DataConfig) -> tuple[ChoiceQuestion, ...]:
    """Config: evaluation.choices_path. Rows {question, choices, answer}; None = no questions.

    DataError that lists the broken or over-long rows, if any.
    """
    if path is None:
        return ()
    return read_all(
        path,
        setting="evaluation.choices_path",
        columns="question, choices, answer",
        read=lambda row: _question(row, chat, limits),
    )


def _question(row: SourceRow, chat: ChatTokenizer, limits: DataConfig) -> ChoiceQuestion:
    text, choices = read_text(row.values.get("question"), "question"), _choices(row.values)
    answer = _answer(row.values.get("answer"), len(choices))
    prompt_ids, ids = tokenise(text, choices, chat)
    require_short(prompt_ids, ids, limits, prompt="question", answer="longest choice")
    if len(set(ids)) < len(ids):
        raise BadRow(Kind.DUPLICATE, "two choices are the same")
    responses = tuple(
        Response(Role.POSITIVE if index == answer else Role.NEGATIVE, token_ids, choice)
        for index, (token_ids, choice) in enumerate(zip(ids, choices, strict=True))
    )
    return ChoiceQuestion(Prompt(row.number, text, (("user", text),), prompt_ids, responses), answer)


def _choices(values: Mapping[str, Any]) -> list[str]:
    value = values.get("choices")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise BadRow(Kind.MALFORMED, "choices is text that is not a JSON list") from None
    if not isinstance(value, list):
        raise BadRow(Kind.MALFORMED, f"choices holds {type(value).__name__}, not a list")
    if len(value) < 2:
        raise BadRow(Kind.MALFORMED, f"choices has {len(value)} entries; at least 2 are needed")
    return [read_text(choice, f"choices[{index}]") for index, choice in enumerate(value)]


def _answer(value: Any, num_choices: int) -> int:
    """2, "2", "C" and "c" -> 2."""
    text = str(value).strip().upper()
    if isinstance(value, str) and len(text) == 1 and "A" <= text <= "Z":
        index = ord(text) - ord("A")
    elif isinstance(value, int | str) and not isinstance(value, bool) and text.isdecimal():
        index = int(text)
    else:
        index = num_choices
    if index >= num_choices:
        last = chr(ord("A") + num_choices - 1)
        raise BadRow(Kind.MALFORMED, f"answer is neither an index 0 to {num_choices - 1} nor a letter A to {last}")
    return index

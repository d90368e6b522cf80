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
from negalign_ray.data.sources import SourceRow, read_rows, source_name
from negalign_ray.data.turns import BadRow, Kind, read_text
from negalign_ray.errors import DataError
from negalign_ray.records import Prompt, Response, Role

MAX_LISTED = 20
SETTING = "evaluation.choices_path"


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """`prompt.responses` are the choices in order, each with the end-of-turn token; `answer` is the right one's index.

    `prompt.prompt_id` is the number of the row.
    """

    prompt: Prompt
    answer: int


def load_choices(path: str | None, chat: ChatTokenizer, *, limits: DataConfig) -> tuple[ChoiceQuestion, ...]:
    """Config: evaluation.choices_path. Rows {question, choices, answer}; None = no questions.

    `limits` bounds lengths as for training data: what is too long for a role would fail after the training, not before.
    DataError that lists the broken rows, if any.
    """
    if path is None:
        return ()
    questions, faults = [], []
    for row in read_rows(path, setting=SETTING):
        try:
            questions.append(_question(row, chat, limits))
        except BadRow as bad:
            faults.append(f"  row {row.number}: {bad.reason}")
    if faults or not questions:
        listed = "\n".join(faults[:MAX_LISTED]) or "  there are none"
        more = f"\n  ... and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else ""
        raise DataError(
            f"{SETTING}={source_name(path)!r} needs rows {{question, choices, answer}}; correct or remove these:\n"
            f"{listed}{more}"
        )
    return tuple(questions)


def _question(row: SourceRow, chat: ChatTokenizer, limits: DataConfig) -> ChoiceQuestion:
    if row.fault:
        raise BadRow(Kind.MALFORMED, row.fault)
    text, choices = read_text(row.values.get("question"), "question"), _choices(row.values)
    answer = _answer(row.values.get("answer"), len(choices))
    for part in (text, *choices):
        if token := chat.special_token_in(part):
            raise BadRow(Kind.TEMPLATE, f"the text spells out the special token {token!r}")
    messages = (("user", text),)
    try:
        rendered = chat.prompt(messages)
        ids = [chat.response_ids(choice, after=rendered) for choice in choices]
    except DataError as error:
        raise BadRow(Kind.TEMPLATE, str(error)) from None
    _require_short(len(rendered.token_ids), "question", "data.max_prompt_tokens", limits.max_prompt_tokens)
    _require_short(max(map(len, ids)), "longest choice", "data.max_response_tokens", limits.max_response_tokens)
    if len(set(ids)) < len(ids):
        raise BadRow(Kind.DUPLICATE, "two choices are the same")
    responses = tuple(
        Response(Role.POSITIVE if index == answer else Role.NEGATIVE, token_ids, choice)
        for index, (token_ids, choice) in enumerate(zip(ids, choices, strict=True))
    )
    return ChoiceQuestion(Prompt(row.number, text, messages, rendered.token_ids, responses), answer)


def _require_short(num_tokens: int, what: str, setting: str, limit: int) -> None:
    if num_tokens > limit:
        raise BadRow(Kind.OVER_LONG, f"the {what} has {num_tokens} tokens, {setting}={limit}")


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

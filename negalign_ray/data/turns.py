"""Conversations as (role, content) pairs: read from strings, HH transcripts or chat `messages`; split into x and y.

All texts lose surrounding white space: it carries no meaning in these data sets, several chat templates trim it anyway,
and a leading newline would merge with the template's own and move the boundary between prompt and response.
"""

import re
from enum import StrEnum
from typing import Any

Message = tuple[str, str]  # (role, content)
Messages = tuple[Message, ...]

ROLE_NAMES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
TURN = re.compile(r"\n\n(Human|Assistant):")
ASKS = "\n\nAssistant:"  # the end of a transcript that waits for an answer


class Kind(StrEnum):
    """What is wrong with a row."""

    MALFORMED = "malformed"
    EMPTY = "empty"
    SAME_ANSWER = "chosen == rejected"
    CONTRADICTION = "contradiction"  # the same answer to the same prompt is called good in one row, bad in another
    DUPLICATE = "duplicate"
    OVER_LONG = "over-long"
    TEMPLATE = "template"  # the chat template or tokenizer cannot represent it


class BadRow(Exception):
    """Internal: one row is broken. Caught row by row and turned into a `Problem`; no row text in the reason."""

    def __init__(self, kind: Kind, reason: str):
        super().__init__(reason)
        self.kind, self.reason = kind, reason


def read_text(value: Any, where: str) -> str:
    """`value` as stripped text; `where` names the column in the reason."""
    if value is None or value == "":
        raise BadRow(Kind.EMPTY, f"{where} is empty")
    if not isinstance(value, str):
        raise BadRow(Kind.MALFORMED, f"{where} holds {type(value).__name__}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(Kind.MALFORMED, f"{where} has half a surrogate pair at character {error.start}") from None
    if not (text := value.strip()):
        raise BadRow(Kind.EMPTY, f"{where} is empty")
    return text


def read_transcript(value: Any, where: str) -> Messages:
    r"""HH transcript `\n\nHuman: ...\n\nAssistant: ...` as messages; the content of a turn may be empty.

    Two turns of one speaker in a row (they occur in HH) become one turn, joined by an empty line.
    """
    before, *parts = TURN.split("\n\n" + read_text(value, where))
    if before.strip() or not parts:
        raise BadRow(Kind.MALFORMED, rf"{where} does not start with '\n\nHuman:' or '\n\nAssistant:'")
    turns: list[Message] = []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1][0] == role:
            turns[-1] = (role, f"{turns[-1][1]}\n\n{content.strip()}".strip())
        else:
            turns.append((role, content.strip()))
    return tuple(turns)


def read_messages(value: list, where: str) -> Messages:
    """Chat `messages`, a list of {role, content}; a system turn may only come first."""
    turns: list[Message] = []
    for index, message in enumerate(value):
        place = f"{where}[{index}]"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise BadRow(Kind.MALFORMED, f"{place} is not an object with role and content")
        role = ROLE_NAMES.get(str(message["role"]).lower())
        if role is None or (role == "system" and index > 0):
            raise BadRow(Kind.MALFORMED, f"{place} has the role {str(message['role'])[:20]!r}, unknown or out of place")
        turns.append((role, read_text(message["content"], f"{place}.content")))
    if not turns:
        raise BadRow(Kind.EMPTY, f"{where} is empty")
    return tuple(turns)


def read_conversation(value: Any, where: str) -> Messages:
    """A whole conversation: chat messages or an HH transcript."""
    return read_messages(value, where) if isinstance(value, list) else read_transcript(value, where)


def read_prompt(value: Any, where: str) -> Messages:
    r"""A prompt: plain text (one user turn), chat messages, or a transcript from '\n\nHuman:' to '\n\nAssistant:'."""
    if isinstance(value, list):
        turns = read_messages(value, where)
    else:
        text = read_text(value, where)
        is_transcript = text.startswith("Human:") and text.endswith(ASKS)
        turns = read_transcript(text.removesuffix(ASKS), where) if is_transcript else (("user", text),)
    return require_question(turns, where)


def read_answer(value: Any, where: str, prompt: Messages) -> str:
    """An answer: text, or messages that hold one assistant turn, optionally after a copy of the prompt."""
    if not isinstance(value, list):
        return read_text(value, where)
    turns = read_messages(value, where)
    if len(turns) > len(prompt) and turns[: len(prompt)] == prompt:
        turns = turns[len(prompt) :]
    if len(turns) != 1 or turns[0][0] != "assistant":
        raise BadRow(Kind.MALFORMED, f"{where} is not the prompt followed by one assistant turn")
    return turns[0][1]


def split_answer(turns: Messages, where: str) -> tuple[Messages, str]:
    """The turns before the last one, which must be the assistant's, and its content."""
    if turns[-1][0] != "assistant":
        raise BadRow(Kind.MALFORMED, f"{where} does not end with an assistant turn")
    if not turns[-1][1]:
        raise BadRow(Kind.EMPTY, f"{where} ends with an empty assistant turn")
    return require_question(turns[:-1], where), turns[-1][1]


def require_question(turns: Messages, where: str) -> Messages:
    """`turns` if they end with a user turn that is not empty."""
    if not turns or turns[-1][0] != "user":
        raise BadRow(Kind.MALFORMED, f"{where} has no user turn before the answer")
    if not turns[-1][1]:
        raise BadRow(Kind.EMPTY, f"{where} has an empty user turn before the answer")
    return turns

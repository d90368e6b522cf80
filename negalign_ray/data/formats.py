"""Data set layouts: which columns make which format, and how a row of each becomes an `Example`.

| format         | columns                                               | read as                          |
|----------------|-------------------------------------------------------|----------------------------------|
| pku_saferlhf   | prompt, response_0|1, is_response_0|1_safe            | unsafe: negative, safe: positive |
| pairs          | prompt, chosen, rejected                              | rejected: negative, chosen: positive |
| unpaired       | prompt, completion or response, label                 | by label, see LABELS             |
| negatives      | prompt, rejected                                      | rejected: negative               |
| hh_transcripts | rejected and, optionally, chosen: whole conversations | as in pairs                      |

Every text may be a list of chat messages instead, and the prompt column may be called `messages`. An optional
behaviour column names the kind of harm. Formats are tried in this order; other columns are ignored.
"""

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from negalign_ray.data.turns import (
    BadRow,
    Kind,
    Messages,
    read_answer,
    read_conversation,
    read_prompt,
    split_answer,
)
from negalign_ray.errors import DataError
from negalign_ray.records import Role

Values = Mapping[str, Any]

# True and 1 mean a good answer, as in TRL's unpaired preference format. A toxicity flag (1 = toxic) must be inverted;
# `data check` shows how each label was read.
LABELS = {
    **dict.fromkeys(("true", "1", "safe", "good", "harmless", "desirable", "chosen", "positive"), Role.POSITIVE),
    **dict.fromkeys(("false", "0", "unsafe", "bad", "harmful", "undesirable", "rejected", "negative"), Role.NEGATIVE),
    **dict.fromkeys(("toxic", "offensive", "hateful"), Role.NEGATIVE),
}


@dataclass(frozen=True, slots=True)
class Example:
    """One row: a prompt ending in a user turn, and its answers by role."""

    row: int
    messages: Messages
    negatives: tuple[str, ...]
    positives: tuple[str, ...]
    behaviour: str | None = None
    label: str | None = None  # as written in the file (unpaired and PKU only)


@dataclass(frozen=True, slots=True)
class Format:
    """`columns`: each inner tuple lists names of which one must be there."""

    columns: tuple[tuple[str, ...], ...]
    read: Callable[[Values], tuple[Messages, tuple[str, ...], tuple[str, ...]]]

    def missing(self, seen: Collection[str]) -> list[tuple[str, ...]]:
        return [names for names in self.columns if not set(names) & set(seen)]

    def describe(self) -> str:
        return "{" + ", ".join("|".join(names) for names in self.columns) + "}"


def recognise(columns: Collection[str], *, wanted: str = "auto", source: str) -> str:
    """Name of the format that `columns` make, or `wanted` if its columns are there; DataError names the nearest one."""
    if wanted != "auto":
        if missing := FORMATS[wanted].missing(columns):
            raise DataError(
                f"{source}: data.format={wanted!r} needs {FORMATS[wanted].describe()}, but the columns are "
                f"{sorted(columns)}: {_name(missing)} missing. Rename columns, or set data.format=auto."
            )
        return wanted
    for name, layout in FORMATS.items():
        if not layout.missing(columns):
            return name
    known = "; ".join(f"{name} {layout.describe()}" for name, layout in FORMATS.items())
    raise DataError(
        f"{source}: the columns {sorted(columns)} make no known format. {_nearest(columns)} All formats: {known}."
    )


def _name(missing: list[tuple[str, ...]]) -> str:
    return " and ".join(repr("|".join(names)) for names in missing)


def _nearest(columns: Collection[str]) -> str:
    """The format that lacks least, counting a column with a similar name as half there, and one left over as half."""

    def similar(names: tuple[str, ...]) -> str | None:
        found = [other for name in names for other in SYNONYMS.get(name, ()) if other in columns]
        found += [m for name in names for m in difflib.get_close_matches(name, sorted(columns), n=1, cutoff=0.6)]
        return found[0] if found else None

    def lack(name: str) -> float:
        missing = FORMATS[name].missing(columns)
        similar_ones = {similar(names) for names in missing} - {None}
        used = {column for names in FORMATS[name].columns for column in names} & set(columns) | similar_ones
        return len(missing) - 0.5 * len(similar_ones) + 0.5 * (len(columns) - len(used))

    nearest = min(FORMATS, key=lack)
    missing = FORMATS[nearest].missing(columns)
    renames = [f"{similar(names)!r} to {names[0]!r}" for names in missing if similar(names)]
    advice = f": rename {' and '.join(renames)}." if renames else "."
    return f"Nearest: {nearest!r}, which lacks {_name(missing)}{advice}"


def read_example(row: int, values: Values, *, layout: str, behaviour_column: str = "behaviour") -> Example:
    """One row as an Example; raises BadRow (malformed, empty or chosen == rejected)."""
    messages, negatives, positives = FORMATS[layout].read(values)
    if set(negatives) & set(positives):
        raise BadRow(Kind.SAME_ANSWER, "the good and the bad answer are the same text")
    behaviour = values.get(behaviour_column)
    behaviour = None if behaviour is None else str(behaviour).strip() or None
    label = str(values["label"]).strip() if layout == "unpaired" else None
    return Example(row, messages, negatives, positives, behaviour, label)


def read_label(value: Any, where: str) -> Role:
    if value is None or value == "":
        raise BadRow(Kind.EMPTY, f"{where} is empty")
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    role = LABELS.get(text.strip().lower())
    if role is None:
        raise BadRow(Kind.MALFORMED, f"{where} {text[:20]!r} is not one of {', '.join(LABELS)}")
    return role


def _prompt(values: Values) -> Messages:
    column = "prompt" if "prompt" in values else "messages"
    return read_prompt(values.get(column), column)


def _read_pairs(values: Values):
    prompt = _prompt(values)
    rejected = read_answer(values.get("rejected"), "rejected", prompt)
    return prompt, (rejected,), (read_answer(values.get("chosen"), "chosen", prompt),)


def _read_negatives(values: Values):
    prompt = _prompt(values)
    return prompt, (read_answer(values.get("rejected"), "rejected", prompt),), ()


def _read_transcripts(values: Values):
    turns = read_conversation(values.get("rejected"), "rejected")
    prompt, rejected = split_answer(turns, "rejected")
    if "chosen" not in values:
        return prompt, (rejected,), ()
    chosen_prompt, chosen = split_answer(read_conversation(values["chosen"], "chosen"), "chosen")
    if chosen_prompt != prompt:
        raise BadRow(Kind.MALFORMED, "chosen and rejected differ before their last assistant turn")
    return prompt, (rejected,), (chosen,)


def _read_unpaired(values: Values):
    role = read_label(values.get("label"), "label")
    column = next((name for name in ("completion", "response") if name in values), None)
    if column is None:
        prompt, answer = split_answer(read_conversation(values["messages"], "messages"), "messages")
    else:
        prompt = _prompt(values)
        answer = read_answer(values[column], column, prompt)
    return (prompt, (answer,), ()) if role is Role.NEGATIVE else (prompt, (), (answer,))


def _read_pku(values: Values):
    prompt = _prompt(values)
    answers: dict[Role, list[str]] = {Role.NEGATIVE: [], Role.POSITIVE: []}
    for index in (0, 1):
        role = read_label(values.get(f"is_response_{index}_safe"), f"is_response_{index}_safe")
        answer = read_answer(values.get(f"response_{index}"), f"response_{index}", prompt)
        if answer not in answers[role]:
            answers[role].append(answer)
    return prompt, tuple(answers[Role.NEGATIVE]), tuple(answers[Role.POSITIVE])


PROMPT = ("prompt", "messages")
SYNONYMS = {  # what others call our columns
    "prompt": ("question", "instruction", "input", "query", "request", "context"),
    "rejected": ("bad_answer", "bad_response", "rejected_response", "negative", "loser"),
    "chosen": ("good_answer", "good_response", "chosen_response", "positive", "winner"),
    "response": ("answer", "output", "reply"),
    "label": ("is_safe", "class"),
}
PKU_COLUMNS = ("response_0", "response_1", "is_response_0_safe", "is_response_1_safe")
FORMATS = {
    "pku_saferlhf": Format((PROMPT, *((name,) for name in PKU_COLUMNS)), _read_pku),
    "pairs": Format((PROMPT, ("chosen",), ("rejected",)), _read_pairs),
    "unpaired": Format((PROMPT, ("completion", "response", "messages"), ("label",)), _read_unpaired),
    "negatives": Format((PROMPT, ("rejected",)), _read_negatives),
    "hh_transcripts": Format((("rejected",),), _read_transcripts),
}

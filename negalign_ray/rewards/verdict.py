"""What a judge's reply says about the two responses it was shown."""

import re
from enum import StrEnum

MARK = re.compile(r"\[\[\s*(A|B|TIE)\s*\]\]", re.IGNORECASE)


class Choice(StrEnum):
    FIRST = "first"
    SECOND = "second"
    TIE = "tie"
    UNREADABLE = "unreadable"


_MEANING = {"A": Choice.FIRST, "B": Choice.SECOND, "TIE": Choice.TIE}


def read_verdict(reply: str | None) -> Choice:
    """The one mark [[A]], [[B]] or [[TIE]] of a reply. None, or two different ones, is unreadable: never guessed.

    "Both insult, A less so. [[A]]" -> FIRST; "A is better" -> UNREADABLE; "[[A]] or [[B]]" -> UNREADABLE
    """
    marks = {mark.upper() for mark in MARK.findall(reply or "")}
    return _MEANING[marks.pop()] if len(marks) == 1 else Choice.UNREADABLE

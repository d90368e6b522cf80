"""The one interface of all reward heads, and the check that every score goes through.

# Axes: N = pairs in a call.
"""

import math
from collections.abc import Sequence
from typing import Literal, Protocol

from negalign_ray.errors import ScoreError

Pair = tuple[str, str]  # (prompt, response), both plain text
TextInput = Literal["response", "prompt_response"]


class RewardHead(Protocol):
    """Scores pairs. A failure is a `ScoreError`, never a 0: a zero would train the model as if it were harmless."""

    @property
    def name(self) -> str:
        """Key of its scores in `Response.rewards`."""

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        """N finite floats in the order of `pairs`; raises ScoreError."""


def score_error(head: str, reason: str) -> ScoreError:
    """A failure of head `head`; the scorer actor that catches it adds its own rank and weight version."""
    return ScoreError(f"head {head!r}: {reason}", role="scorer")


def text_of(pair: Pair, text_input: TextInput) -> str:
    """The text a text-only classifier reads."""
    prompt, response = pair
    return response if text_input == "response" else f"{prompt}\n{response}"


def checked_scores(head: str, values: object, *, expected: int) -> list[float]:
    """`values` as floats, or ScoreError when it is not a sequence of `expected` finite numbers."""
    if hasattr(values, "tolist"):  # numpy arrays and torch tensors
        values = values.tolist()
    if not isinstance(values, list | tuple):
        raise score_error(head, f"returned {type(values).__name__} where a list of {expected} numbers was expected.")
    if len(values) != expected:
        raise score_error(head, f"returned {len(values)} scores for {expected} pairs.")
    scores: list[float] = []
    for index, value in enumerate(values):
        if hasattr(value, "item"):  # numpy scalars
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise score_error(head, f"score {index} is a {type(value).__name__}, not a number.")
        if not math.isfinite(value):
            raise score_error(head, f"score {index} is {value}, not a finite number.")
        scores.append(float(value))
    return scores

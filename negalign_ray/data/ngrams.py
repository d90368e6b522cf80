"""How often token sequences repeat themselves: what the collapse guards and the evaluation both measure."""

from collections.abc import Hashable, Sequence

Tokens = Sequence[Hashable]


def ngrams(tokens: Tokens, n: int) -> list[tuple[Hashable, ...]]:
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


def repetition_frac(tokens: Tokens, *, n: int = 4) -> float:
    """Share of an answer's n-grams that repeat an earlier one: 0 = none, near 1 = a loop; 0 below n tokens.

    [1, 2, 1, 2, 1, 2, 1] -> 4-grams 1212 2121 1212 2121 -> 2 of 4 repeat -> 0.5.
    """
    grams = ngrams(tokens, n)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0

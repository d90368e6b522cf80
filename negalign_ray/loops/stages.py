"""Where the time of a step went: busy seconds and tokens per stage, as the roles measured them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator


class StageClock:
    def __init__(self) -> None:
        self._busy_s: dict[tuple[int, str], list[float]] = defaultdict(list)
        self._tokens: dict[tuple[int, str], int] = defaultdict(int)

    def add(self, step: int, stage: str, busy_s: float, num_tokens: int = 0) -> None:
        self._busy_s[step, stage].append(busy_s)
        self._tokens[step, stage] += num_tokens

    def longest_s(self, step: int, stage: str) -> float:
        """The busiest wave of the step: what the step waited for when waves run side by side."""
        return max(self._busy_s.get((step, stage), [0.0]))

    def total_s(self, step: int, stage: str) -> float:
        return sum(self._busy_s.get((step, stage), []))

    def tokens(self, step: int, stage: str) -> int:
        return self._tokens.get((step, stage), 0)

    def entries(self) -> Iterator[tuple[int, str, tuple[float, ...], int]]:
        """(step, stage, busy seconds of its waves, tokens)."""
        for (step, stage), busy_s in self._busy_s.items():
            yield step, stage, tuple(busy_s), self._tokens[step, stage]

    def restore(self, step: int, stage: str, busy_s: Iterable[float], num_tokens: int) -> None:
        self._busy_s[step, stage] = list(busy_s)
        self._tokens[step, stage] = num_tokens

    def forget_before(self, step: int) -> None:
        for table in (self._busy_s, self._tokens):
            for key in [key for key in table if key[0] < step]:
                del table[key]

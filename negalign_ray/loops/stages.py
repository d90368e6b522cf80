"""Where the time of a step went: busy seconds per stage, as the roles measured them, and what they did in it."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping


class StageClock:
    def __init__(self) -> None:
        self._busy_s: dict[tuple[int, str], list[float]] = defaultdict(list)
        self._counts: Counter[tuple[int, str, str]] = Counter()

    def add(self, step: int, stage: str, busy_s: float, **counts: int) -> None:
        """`counts`: what one wave of the stage did, such as tokens=96."""
        self._busy_s[step, stage].append(busy_s)
        for what, count in counts.items():
            self._counts[step, stage, what] += count

    def longest_s(self, step: int, stage: str) -> float:
        """The busiest wave of the step: what the step waited for when waves run side by side."""
        return max(self._busy_s.get((step, stage), [0.0]))

    def total_s(self, step: int, stage: str) -> float:
        return sum(self._busy_s.get((step, stage), []))

    def count(self, step: int, stage: str, what: str) -> int:
        return self._counts[step, stage, what]

    def entries(self) -> Iterator[tuple[int, str, tuple[float, ...], dict[str, int]]]:
        """(step, stage, busy seconds of its waves, counts)."""
        for (step, stage), busy_s in self._busy_s.items():
            counts = {what: num for (*key, what), num in self._counts.items() if key == [step, stage]}
            yield step, stage, tuple(busy_s), counts

    def restore(self, step: int, stage: str, busy_s: Iterable[float], counts: Mapping[str, int]) -> None:
        self._busy_s[step, stage] = list(busy_s)
        self._counts.update({(step, stage, what): num for what, num in counts.items()})

    def forget_before(self, step: int) -> None:
        self._busy_s = defaultdict(list, {key: value for key, value in self._busy_s.items() if key[0] >= step})
        self._counts = Counter({key: count for key, count in self._counts.items() if key[0] >= step})

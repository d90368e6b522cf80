"""What one run's training curve says: when it got where, how smoothly, and what it spent.

Rows are those of metrics.jsonl.
"""

import itertools
import statistics
from collections.abc import Iterator, Sequence

from negalign_ray.metrics import Row
from negalign_ray.settings.comparison import Curve

Points = list[tuple[int, float]]  # (optimizer step, value), in order


def points_of(rows: Sequence[Row], metric: str) -> Points:
    """The steps at which `metric` was measured."""
    return [(int(row["step"]), float(row[metric])) for row in rows if row.get(metric) is not None]  # type: ignore[arg-type]


def curve_points(rows: Sequence[Row], curve: Curve) -> Points:
    """The points of `curve.metric`, as the change since the first of them where `curve.since_start`."""
    points = points_of(rows, curve.metric)
    start = points[0][1] if points and curve.since_start else 0.0
    return [(step, value - start) for step, value in points]


def smoothed(points: Points, *, window: int) -> Points:
    """Trailing means over `window` measurements; the first stands at the last step of the first full window.

    [(1, 0), (2, -2), (3, -4)], window 2 -> [(2, -1), (3, -3)]
    """
    return [
        (points[end - 1][0], statistics.fmean(value for _, value in points[end - window : end]))
        for end in range(window, len(points) + 1)
    ]


def steps_to_target(rows: Sequence[Row], curve: Curve) -> int | None:
    """First step at which the smoothed curve is where `curve.at_most` or `at_least` wants it; None if it never is."""
    for step, value in smoothed(curve_points(rows, curve), window=curve.window):
        reached_below = curve.at_most is not None and value <= curve.at_most
        reached_above = curve.at_least is not None and value >= curve.at_least
        if reached_below or reached_above:
            return step
    return None


def roughness(rows: Sequence[Row], metric: str) -> float | None:
    """Sample standard deviation of the changes between measurements; a straight line has 0, however steep.

    A metric of the step's own prompts is rougher than one of followed answers. None with fewer than three measurements.

    0, -1, -3, -4 -> differences -1, -2, -1 -> sqrt(1/3) = 0.577
    """
    values = [value for _, value in points_of(rows, metric)]
    changes = [after - before for before, after in itertools.pairwise(values)]
    return statistics.stdev(changes) if len(changes) > 1 else None


def relative_spread(rows: Sequence[Row], metric: str) -> float | None:
    """Sample standard deviation over mean: for a metric above 0 whose scale differs between methods. 1, 3 -> 0.707."""
    values = [value for _, value in points_of(rows, metric)]
    if len(values) < 2 or statistics.fmean(values) <= 0:
        return None
    return statistics.stdev(values) / statistics.fmean(values)


def sampled_tokens(rows: Sequence[Row]) -> int:
    """New tokens that the samplers wrote for training, thrown-away answers included."""
    return round(sum(speed * busy_s for speed, busy_s in _both(rows, "sampler/tokens_per_s", "sampler/busy_s")))


def trained_tokens(rows: Sequence[Row]) -> int:
    """Tokens that the learners computed, prompts included."""
    return round(total(rows, "learner/tokens"))


def total(rows: Sequence[Row], metric: str) -> float:
    return sum(value for _, value in points_of(rows, metric))


def _both(rows: Sequence[Row], first: str, second: str) -> Iterator[tuple[float, float]]:
    for row in rows:
        here, there = row.get(first), row.get(second)
        if here is not None and there is not None:
            yield here, there

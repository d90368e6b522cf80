"""Small drawings in text: curves, bars, times."""

from collections.abc import Sequence
from itertools import pairwise

LEVELS = "▁▂▃▄▅▆▇█"
FULL, EMPTY = "━", "─"
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a braille character, by row and column
BRAILLE = 0x2800


def spark(values: Sequence[float], width: int) -> str:
    """`width` characters, each the mean of the values in its place; lowest = "▁".

    spark((0, 1, 2, 7), 4) = "▁▂▃█"; spark((0, 7), 4) = "▁▁██"; values that are all equal are lowest.
    """
    means = thinned(values, width)
    low, span = min(means), max(means) - min(means)
    top = len(LEVELS) - 1
    levels = [LEVELS[round((mean - low) / span * top) if span else 0] for mean in means]
    return "".join(levels[column * len(levels) // width] for column in range(width))


def thinned(values: Sequence[float], num: int) -> list[float]:
    """At most `num` means of neighbours, each of the same number of values, give or take one."""
    size = len(values)
    if size <= num:
        return list(values)
    edges = [index * size // num for index in range(num + 1)]
    return [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]


def chart(values: Sequence[float], *, width: int, height: int) -> list[str]:
    """One value or more as a line from left to right over `height` rows of braille, 2 x 4 dots a character, the highest
    value on top. Straight between values; equal values are a line at the bottom."""
    num_columns, num_rows = 2 * width, 4 * height
    points = _stretched(thinned(values, num_columns), num_columns)
    low, high = min(points), max(points)
    scale = (num_rows - 1) / (high - low) if high > low else 0.0
    rows = [round((high - point) * scale) if scale else num_rows - 1 for point in points]
    cells = [[0] * width for _ in range(height)]
    before = rows[0]
    for column, row in enumerate(rows):
        joined = before + (row > before) - (row < before)  # next to the dot before, so that steep lines have no gaps
        for each in range(min(row, joined), max(row, joined) + 1):
            cells[each // 4][column // 2] |= DOTS[each % 4][column % 2]
        before = row
    return ["".join(chr(BRAILLE + cell) for cell in line) for line in cells]


def _stretched(values: Sequence[float], num: int) -> list[float]:
    """`num` points on the straight lines between the values."""
    if len(values) == 1:
        return list(values) * num
    points = []
    for index in range(num):
        place = index * (len(values) - 1) / (num - 1)
        before = min(int(place), len(values) - 2)
        points.append(values[before] + (values[before + 1] - values[before]) * (place - before))
    return points


def bar(frac: float, width: int) -> tuple[str, str]:
    """The filled part and the rest: bar(0.5, 4) = ("━━", "──"). Above 0 at least one character is filled."""
    frac = min(1.0, max(0.0, frac))
    filled = max(1, round(frac * width)) if frac > 0 else 0
    return FULL * filled, EMPTY * (width - filled)


def clock(seconds: float) -> str:
    """75 -> "1:15", 3700 -> "1:01:40", 200000 -> "2d 7:33:20"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if hours:
        return f"{f'{days}d ' if days else ''}{hour}:{minute:02}:{second:02}"
    return f"{minute}:{second:02}"


def shortened(number: float) -> str:
    """38 -> "38", 12345 -> "12.3k"."""
    return f"{number:.0f}" if number < 10_000 else f"{number / 1000:.3g}k"

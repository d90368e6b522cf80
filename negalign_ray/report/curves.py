"""The charts of a report as plain data, which the page's script draws.

rows of metrics --chart_list--> lines --thin, smooth--> {"title", "unit", "series": [{"x", "y", "smooth"}], "marks"}
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from negalign_ray.errors import UnknownMetricError
from negalign_ray.metrics import TOTAL, metric_for
from negalign_ray.report.chart_list import ChartPlan, Line, SectionPlan, sections
from negalign_ray.report.read import RunFiles
from negalign_ray.report.start import initial_figures
from negalign_ray.report.times import step_parts

MAX_POINTS = 500  # of one curve
MIN_SMOOTHED = 20  # a shorter curve is drawn as it is
SMOOTHED_FRAC = 20  # a running mean looks back a twentieth of the run, three points at least


@dataclass(frozen=True)
class Series:
    """A curve: `x` are optimizer steps; `smooth` is a running mean of all points up to each x, or None."""

    label: str
    tone: str
    x: tuple[int, ...]
    y: tuple[float, ...]
    smooth: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Mark:
    """A guard that fired, at the step."""

    x: int
    label: str


@dataclass(frozen=True)
class Chart:
    title: str
    unit: str
    series: tuple[Series, ...]
    kind: str = "lines"  # or "stack": areas upon each other, all with the same x
    note: str = ""
    marks: tuple[Mark, ...] = ()
    meanings: tuple[tuple[str, str, str], ...] = ()  # (metric, meaning, what a bad value hints at)


@dataclass(frozen=True)
class Section:
    title: str
    charts: tuple[Chart, ...]
    is_folded: bool = False


@dataclass(frozen=True)
class _Curves:
    """Every measured value of one run, by metric."""

    run: RunFiles
    by_key: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)

    @classmethod
    def of(cls, run: RunFiles) -> "_Curves":
        by_key: dict[str, tuple[list[int], list[float]]] = {}
        for row in run.rows:
            for key, value in row.items():
                if "/" in key and isinstance(value, (int, float)):
                    steps, values = by_key.setdefault(key, ([], []))
                    steps.append(int(row["step"] or 0))
                    values.append(float(value))
        if any(key.startswith("eval/") for key in by_key):
            for key, value in initial_figures(run).items():
                if key in by_key and by_key[key][0][0] > 0:
                    by_key[key][0].insert(0, 0)
                    by_key[key][1].insert(0, value)
        return cls(run, by_key)


def curve_sections(runs: Sequence[RunFiles]) -> list[Section]:
    """With one run, a chart has a line for each of its metrics; with several, it has one metric and a line a run."""
    curves = [_Curves.of(run) for run in runs]
    keys = [key for one in curves for key in one.by_key]
    groups_of: dict[str, float] = {}
    for one in curves:
        for key, (_, values) in one.by_key.items():
            if key.startswith("behaviour/") and key.endswith("/num_groups"):
                name = key.removeprefix("behaviour/").removesuffix("/num_groups")
                groups_of[name] = groups_of.get(name, 0.0) + sum(values)
    return [_section(plan, curves) for plan in sections(keys, groups_of=groups_of)]


def _section(plan: SectionPlan, curves: Sequence[_Curves]) -> Section:
    charts: list[Chart] = []
    for chart in plan.charts:
        charts += [_one_run(chart, curves[0])] if len(curves) == 1 else _several_runs(chart, curves)
    return Section(plan.title, tuple(charts), plan.is_folded)


def _one_run(plan: ChartPlan, curves: _Curves) -> Chart:
    series = [_series(curves, line.key, label=line.label, tone=line.tone) for line in plan.lines]
    return _chart(plan, plan.title, plan.lines, series, [curves.run])


def _several_runs(plan: ChartPlan, curves: Sequence[_Curves]) -> Iterator[Chart]:
    for line in plan.lines:
        title = plan.title if len(plan.lines) == 1 else f"{plan.title}: {line.label}"
        series = [
            _series(one, line.key, label=one.run.name, tone=str(number % 8 + 1))
            for number, one in enumerate(curves)
            if line.key in one.by_key
        ]
        yield _chart(plan, title, (line,), series, [one.run for one in curves])


def _chart(
    plan: ChartPlan, title: str, lines: Sequence[Line], series: Sequence[Series], runs: Sequence[RunFiles]
) -> Chart:
    meanings = tuple(meaning for line in lines if (meaning := _meaning(line.key)))
    keys = {line.key for line in lines}
    return Chart(
        title=title,
        unit=_unit(lines[0].key),
        series=tuple(series),
        note=plan.note,
        marks=tuple(mark for run in runs for mark in _marks(run, keys, name_run=len(runs) > 1)),
        meanings=tuple(dict.fromkeys(meanings)),
    )


def _unit(key: str) -> str:
    try:
        return metric_for(key).unit
    except UnknownMetricError:  # of an older version, or a newer one
        return ""


def _meaning(key: str) -> tuple[str, str, str] | None:
    try:
        metric = metric_for(key)
    except UnknownMetricError:
        return None
    name = "behaviour/…/margin_nats" if key.startswith("behaviour/") else key
    return name, metric.meaning, metric.bad


def _marks(run: RunFiles, keys: set[str], *, name_run: bool) -> Iterator[Mark]:
    for firing in run.summary.get("guards") or ():
        if firing["metric"] in keys:
            where = f" ({run.name})" if name_run else ""
            yield Mark(firing["step"], f"guard {firing['guard']}{where}")


def _series(curves: _Curves, key: str, *, label: str, tone: str) -> Series:
    steps, values = curves.by_key[key]
    kept = thin(values)
    is_counter = _unit(key) == TOTAL
    means = running_means(values) if len(values) >= MIN_SMOOTHED and not is_counter else None
    return Series(
        label=label,
        tone=tone,
        x=tuple(steps[index] for index in kept),
        y=tuple(short(values[index]) for index in kept),
        smooth=None if means is None else tuple(short(means[index]) for index in kept),
    )


def thin(values: Sequence[float], most: int = MAX_POINTS) -> list[int]:
    """Indices to keep: all, or the lowest and the highest value of most / 2 equal stretches, so that spikes stay.

    (1, 9, 2, 3, 0, 5) to 4 -> stretches (1, 9, 2) and (3, 0, 5) -> indices 0, 1, 4, 5
    """
    num = len(values)
    if num <= most:
        return list(range(num))
    stretches = most // 2
    bounds = [num * part // stretches for part in range(stretches + 1)]
    kept: set[int] = set()
    for start, end in pairwise(bounds):
        indices = range(start, end)
        kept |= {min(indices, key=values.__getitem__), max(indices, key=values.__getitem__)}
    return sorted(kept)


def running_means(values: Sequence[float]) -> list[float]:
    """Means of the last twentieth of the run, at least three values: (3, 6, 9, 0) -> 3, 4.5, 6, 5."""
    width = max(3, round(len(values) / SMOOTHED_FRAC))
    sums = [0.0, *accumulate(values)]
    starts = (max(0, end - width) for end in range(1, len(values) + 1))
    return [(sums[end] - sums[start]) / (end - start) for end, start in enumerate(starts, start=1)]


def short(value: float) -> float:
    """Four significant digits: enough to draw and to read."""
    return float(f"{value:.4g}")


def time_chart(run: RunFiles, *, name_run: bool) -> Chart | None:
    """The learners' step, stacked; long runs are averaged over equal stretches. None without steps."""
    parts = step_parts(run.rows)
    if not parts:
        return None
    num = len(run.rows)
    stretches = min(num, MAX_POINTS)
    bounds = [num * part // stretches for part in range(stretches + 1)]
    cuts = list(pairwise(bounds))
    steps = tuple(int(run.rows[end - 1]["step"] or 0) for _, end in cuts)
    series = tuple(
        Series(label, tone, steps, tuple(short(sum(values[a:b]) / (b - a)) for a, b in cuts))
        for label, tone, values in parts
    )
    title = f"Time of a step, {run.name}" if name_run else "Time of a step"
    return Chart(title, "s", series, kind="stack")


def as_json(chart: Chart) -> dict[str, Any]:
    """What the page's script reads."""
    return {
        "title": chart.title,
        "unit": chart.unit,
        "kind": chart.kind,
        "series": [
            {"label": one.label, "tone": one.tone, "x": one.x, "y": one.y}
            | ({} if one.smooth is None else {"smooth": one.smooth})
            for one in chart.series
        ],
        "marks": [{"x": mark.x, "label": mark.label} for mark in chart.marks],
    }

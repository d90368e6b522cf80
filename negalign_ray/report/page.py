"""The page: one HTML file with its style, its script and its data inside, that asks nothing of any network.

A content security policy allows exactly the inlined script (by its hash), so that no text of a run can become code.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from negalign_ray import __version__
from negalign_ray.report.curves import Chart, as_json, curve_sections, time_chart
from negalign_ray.report.facts import Facts, facts_of, without_secrets
from negalign_ray.report.judged import PlainTable, judged_tables
from negalign_ray.report.outcome import BehaviourRow, FigureRow, behaviour_rows, figure_rows
from negalign_ray.report.read import CONFIG, RunFiles
from negalign_ray.report.samples import PackedSamples
from negalign_ray.report.timeline import GuardRow, Timeline, guard_rows, timeline_of
from negalign_ray.report.times import Bar, bars, duration
from negalign_ray.report.verdict import Verdict, harm_key, verdict_of
from negalign_ray.report.versus import versus

STYLES = ("tokens.css", "page.css", "tables.css", "charts.css", "viewer.css", "print.css")
SCRIPTS = ("elements.js", "scale.js", "chart.js", "stack.js", "filter.js", "viewer.js", "page.js")


@dataclass(frozen=True)
class RunView:
    """All that the templates show of one run. `tone` is the run's colour where several are drawn."""

    name: str
    tone: str
    run: RunFiles
    verdict: Verdict
    figures: Sequence[FigureRow]
    behaviours: Sequence[BehaviourRow]
    judged: Sequence[PlainTable]
    harm: str  # title of the figure that `behaviours` show
    bars: Sequence[Bar]
    guards: Sequence[GuardRow]
    timeline: Timeline | None
    facts: Facts
    config_text: str


def render(runs: Sequence[RunFiles], samples: PackedSamples) -> str:
    """The whole file as text."""
    views = [_view(run, number) for number, run in enumerate(runs)]
    numbered = _Charts()
    sections = [
        (section, [(numbered.add(chart), chart) for chart in section.charts]) for section in curve_sections(runs)
    ]
    step_charts = [(numbered.add(chart), chart) for run in runs if (chart := time_chart(run, name_run=len(runs) > 1))]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared",
            views=views,
            versus=versus(runs),
            sections=sections,
            step_charts=step_charts,
            charts=[as_json(chart) for chart in numbered.charts],
            samples=samples,
            version=__version__,
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            style=_joined(STYLES) + light_only(_joined(STYLES)),
            script=_joined(SCRIPTS),
            script_hash=_sha256(_joined(SCRIPTS)),
        )
    )


class _Charts:
    """Numbers the charts in the order in which they are met."""

    def __init__(self) -> None:
        self.charts: list[Chart] = []

    def add(self, chart: Chart) -> int:
        self.charts.append(chart)
        return len(self.charts) - 1


def _view(run: RunFiles, number: int) -> RunView:
    config = run.path / CONFIG
    key = harm_key(run.summary) if run.is_measured else None
    return RunView(
        name=run.name,
        tone=str(number % 8 + 1),
        run=run,
        verdict=verdict_of(run),
        figures=figure_rows(run),
        behaviours=behaviour_rows(run),
        judged=judged_tables(run),
        harm=run.summary["figures"][key]["title"] if key else "",
        bars=bars(run),
        guards=guard_rows(run),
        timeline=timeline_of(run),
        facts=facts_of(run),
        config_text=without_secrets(config.read_text(encoding="utf-8", errors="replace")) if config.is_file() else "",
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("negalign_ray.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    environment.filters["data_block"] = data_block
    return environment


def data_block(value: Mapping[str, Any] | Sequence[Any]) -> Markup:
    """JSON for the inside of a <script>: no `<` is left that could end it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


@cache
def _joined(names: Sequence[str]) -> Markup:
    """Our own files, one after the other: the only text that reaches the page unescaped."""
    folder = files("negalign_ray.report") / "assets"
    return Markup("\n".join((folder / name).read_text(encoding="utf-8") for name in names))


def light_only(style: str) -> Markup:
    """The light colours once more, for browsers of 2023, which know no light-dark(): without them nothing is drawn."""
    light = re.findall(r"(--[\w-]+): light-dark\((#\w+), #\w+\)", style)
    declared = " ".join(f"{name}: {colour};" for name, colour in light)
    rule = f":root, :root[data-theme] {{ color-scheme: light; {declared} }}"
    return Markup(f"\n@supports not (color: light-dark(#000, #fff)) {{ {rule} }}\n")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")

"""What `negalign-ray data check FILE` says about a file: a report to compute with, and its rendering for a terminal.

Texts in such files are often offensive. The rendering covers their letters and digits (prompt `░`, response `█`) so
that template, roles, punctuation and the loss mask can be judged without reading them; `show_text=True` uncovers.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from negalign_ray.config import DataConfig
from negalign_ray.data.chat import ChatTokenizer
from negalign_ray.data.prepare import Prepared, Problem, count_kinds, prepare
from negalign_ray.data.turns import Kind
from negalign_ray.records import Prompt, Role

MAX_PREVIEW_CHARS = 600  # of one stretch of text; the middle of longer ones is folded
HIDDEN = re.compile(r"[^\W_]")


@dataclass(frozen=True, slots=True)
class Lengths:
    """Percentiles in tokens (nearest rank); all 0 when there is nothing to measure."""

    p50: int = 0
    p90: int = 0
    p99: int = 0
    max: int = 0


@dataclass(frozen=True, slots=True)
class Count:
    """Sound prompts and answers, of one behaviour or of the whole file."""

    prompts: int
    negatives: int
    positives: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a templated row. `is_content`: text of the row rather than of the chat template."""

    text: str
    is_content: bool
    in_loss: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """One templated row, decoded from the very tokens a learner gets; the loss covers the response tokens only."""

    row: int
    num_prompt_tokens: int
    num_loss_tokens: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class DataReport:
    """Result of a check. `ok` is what the exit status of `data check` says."""

    source: str
    format: str
    num_rows: int
    total: Count
    by_behaviour: dict[str, Count]  # "" = rows without one; empty when no row has one
    labels: dict[str, Role]
    prompt_lengths: Lengths
    response_lengths: Lengths
    problems: tuple[Problem, ...]
    preview: Preview | None

    @property
    def num_prompts(self) -> int:
        return self.total.prompts

    @property
    def problem_counts(self) -> dict[Kind, int]:
        return count_kinds(self.problems)

    @property
    def ok(self) -> bool:
        return not self.problems and self.total.prompts > 0


def check_data(config: DataConfig, chat: ChatTokenizer) -> DataReport:
    """Check `config.path`; broken rows are in the report. DataError only when the file cannot be read at all."""
    return make_report(prepare(config.path, config=config, chat=chat), chat=chat)


def make_report(prepared: Prepared, *, chat: ChatTokenizer) -> DataReport:
    behaviours = sorted({prompt.behaviour or "" for prompt in prepared.prompts})
    by_behaviour = {name: _count(p for p in prepared.prompts if (p.behaviour or "") == name) for name in behaviours}
    return DataReport(
        source=prepared.source,
        format=prepared.format,
        num_rows=prepared.num_rows,
        total=_count(prepared.prompts),
        by_behaviour=by_behaviour if any(behaviours) else {},
        labels=prepared.labels,
        prompt_lengths=percentiles(prepared.prompt_lengths),
        response_lengths=percentiles(prepared.response_lengths),
        problems=prepared.problems,
        preview=make_preview(prepared.prompts[0], chat=chat) if prepared.prompts else None,
    )


def _count(prompts: Iterable[Prompt]) -> Count:
    prompts = tuple(prompts)
    roles = Counter(response.role for prompt in prompts for response in prompt.responses)
    return Count(len(prompts), roles[Role.NEGATIVE], roles[Role.POSITIVE])


def percentiles(lengths: Sequence[int]) -> Lengths:
    """Nearest-rank percentiles: (1, 2, ..., 10) -> p50 5, p90 9, p99 10, max 10."""
    if not lengths:
        return Lengths()
    ordered = sorted(lengths)

    def at(percent: int) -> int:
        return ordered[-(-percent * len(ordered) // 100) - 1]

    return Lengths(at(50), at(90), at(99), ordered[-1])


def make_preview(prompt: Prompt, *, chat: ChatTokenizer) -> Preview:
    """The first answer of `prompt` under the chat template, cut into template and content."""
    response = prompt.responses[0]
    contents = [content for _, content in prompt.messages]
    segments = _cut(chat.decode_raw(prompt.token_ids), contents, in_loss=False)
    segments += _cut(chat.decode_raw(response.token_ids), [response.text], in_loss=True)
    return Preview(prompt.prompt_id, len(prompt.token_ids), len(response.token_ids), tuple(segments))


def _cut(text: str, contents: Sequence[str], *, in_loss: bool) -> list[Segment]:
    """`text` around each of `contents` in turn. One that is not found makes all the rest content: better to cover too
    much than to show it."""
    segments, start = [], 0
    for content in contents:
        found = text.find(content, start)
        if found < 0:
            break
        segments += [Segment(text[start:found], False, in_loss), Segment(content, True, in_loss)]
        start = found + len(content)
    else:
        return [s for s in [*segments, Segment(text[start:], False, in_loss)] if s.text]
    return [s for s in [*segments, Segment(text[start:], True, in_loss)] if s.text]


def render_report(report: DataReport, *, show_text: bool = False, max_problems: int = 0) -> RenderableType:
    """The report for a terminal (rich). Every text of the data set is escaped, so that it cannot drive the terminal.

    `max_problems`: broken rows listed; 0 = all.
    """
    parts: list[RenderableType] = [_summary(report)]
    if report.by_behaviour:
        parts.append(_behaviours(report))
    parts.append(_lengths(report))
    if report.preview is not None:
        parts.append(render_preview(report.preview, show_text=show_text))
    parts.append(_problems(report, max_problems=max_problems))
    return Group(*parts)


def render_preview(preview: Preview, *, show_text: bool = False) -> RenderableType:
    """Template plain, prompt text dim, loss tokens reversed and between ⟦ ⟧ (visible without colours too)."""
    text = Text()
    for in_loss in (False, True):
        text.append("⟦" if in_loss else "", style="bold green")
        for segment in preview.segments:
            if segment.in_loss is in_loss:
                text.append(_shown(segment, show_text=show_text), style=_style(segment))
    text.append("⟧", style="bold green")
    footer = f"{preview.num_prompt_tokens} prompt tokens outside the loss, {preview.num_loss_tokens} inside ⟦ ⟧"
    covered = "" if show_text else "; letters covered, --show-text uncovers them"
    return Panel(text, title=f"row {preview.row} as the model sees it", subtitle=footer + covered, title_align="left")


def _style(segment: Segment) -> str:
    if segment.in_loss:
        return "reverse green"
    return "dim" if segment.is_content else "cyan"


def _shown(segment: Segment, *, show_text: bool) -> str:
    text = escape_control(segment.text).replace("⟦", "[").replace("⟧", "]")
    if segment.is_content and not show_text:
        text = HIDDEN.sub("█" if segment.in_loss else "░", text)
    if len(text) <= MAX_PREVIEW_CHARS:
        return text
    half = MAX_PREVIEW_CHARS // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters folded …\n{text[-half:]}"


def escape_control(text: str) -> str:
    """`text` with control, format and surrogate characters written as escapes; newlines as `↵` and a line break."""
    shown = (char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)
    return "".join(shown).replace("\n", "↵\n")


def _grid(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def _plain(text: str) -> Text:
    return Text(escape_control(text))  # Text, not str: brackets in the data must not become markup


def _summary(report: DataReport) -> Table:
    table = Table.grid(padding=(0, 2))
    rows = {
        "file": report.source,
        "format": report.format,
        "rows": f"{report.num_rows:,}",
        "prompts": f"{report.total.prompts:,}",
        "negatives": f"{report.total.negatives:,}",
        "positives": f"{report.total.positives:,}",
    }
    if report.labels:
        rows["labels"] = ", ".join(f"{label!r} = {role}" for label, role in report.labels.items())
    for kind in (Kind.DUPLICATE, Kind.EMPTY, Kind.SAME_ANSWER, Kind.OVER_LONG):
        rows[kind] = f"{report.problem_counts.get(kind, 0):,}"
    for kind, count in report.problem_counts.items():
        rows[kind] = f"{count:,}"
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), _plain(value))
    return table


def _behaviours(report: DataReport) -> Table:
    table = _grid("behaviour", "prompts", "negatives", "positives")
    for name, count in report.by_behaviour.items():
        numbers = (count.prompts, count.negatives, count.positives)
        table.add_row(_plain(name or "(none)"), *(f"{number:,}" for number in numbers))
    return table


def _lengths(report: DataReport) -> Table:
    table = _grid("tokens", "p50", "p90", "p99", "max")
    for name, lengths in (("prompt", report.prompt_lengths), ("response", report.response_lengths)):
        numbers = (lengths.p50, lengths.p90, lengths.p99, lengths.max)
        table.add_row(name, *(f"{number:,}" for number in numbers))
    return table


def _problems(report: DataReport, *, max_problems: int) -> RenderableType:
    if not report.problems:
        return Text("no broken rows", style="green")
    table = _grid("row", "problem", "reason", title=f"{len(report.problems):,} broken rows")
    for column in table.columns:
        column.justify = "left"
    listed = report.problems[: max_problems or None]
    for problem in listed:
        table.add_row(str(problem.row), str(problem.kind), _plain(problem.reason))
    num_left = len(report.problems) - len(listed)
    if num_left:
        return Group(table, Text(f"... and {num_left:,} more; --max-problems 0 lists all"))
    return table

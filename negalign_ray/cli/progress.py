"""A run as the terminal shows it: one line per finished step, and below it one live line per role with an ETA.

Where the output is no terminal (a file, CI), only the lines of steps and phases are written.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from negalign_ray.live.draw import clock

if TYPE_CHECKING:
    from negalign_ray.actors.conductor import Status

Metrics = dict[str, float]
STEP_FIELDS = (  # what the line of a step shows: label, metric, format
    ("loss", "learner/loss", "{:.3f}"),
    ("negatives", "learner/negative_logratio_nats", "{:+.2f}"),
    ("positives", "learner/positive_logratio_nats", "{:+.2f}"),
    ("own samples", "learner/sample_logratio_nats", "{:+.2f}"),
    ("gradient", "learner/grad_norm", "{:.1f}"),
    ("stale", "sampler/staleness_steps", "{:.1f}"),
)
GUIDE_FIELDS = (
    ("fit s", "guide/busy_s", "{:.1f}"),
    ("gain nats/token", "guide/gain_nats", "{:+.2f}"),
    ("distance", "guide/distance", "{:.2f}"),
)
ROLE_FIELDS = (  # what the live line of a role shows
    ("samplers", (("tok/s", "sampler/tokens_per_s", "{:.0f}"), ("busy s", "sampler/busy_s", "{:.1f}"))),
    ("scorers", (("busy s", "scorer/busy_s", "{:.2f}"),)),
    ("references", (("busy s", "reference/busy_s", "{:.1f}"),)),
    ("guide", GUIDE_FIELDS),
    ("learners", (("tok/s", "learner/tokens_per_s", "{:.0f}"), ("waited s", "learner/pull_wait_s", "{:.1f}"))),
    ("conductor", (("buffer", "conductor/buffer_groups", "{:.0f}"), ("re-issued", "conductor/reissued", "{:.0f}"))),
)


def shown(fields: tuple[tuple[str, str, str], ...], metrics: Metrics) -> str:
    """ "loss 0.693  gradient 12.0": the fields that were measured."""
    parts = [f"{label} {style.format(metrics[key])}" for label, key, style in fields if metrics.get(key) is not None]
    return "  ".join(parts)


def _guide_line(status: "Status") -> str:
    """ "fitting on 96 groups for 0:35" while the learners wait for it, then what came out; "" for other methods."""
    if status.fit is None:
        return shown(GUIDE_FIELDS, status.metrics)
    num_groups, seconds = status.fit
    return f"fitting on {num_groups} groups for {clock(seconds)}"


class Progress:
    """Context manager; `update` is what `actors.run.train` calls with the phase and the conductor's status."""

    def __init__(self, console: Console, *, title: str, now: Callable[[], float] = time.monotonic):
        self._console, self._title, self._now = console, title, now
        self._phase = "checking"
        self._status: Status | None = None
        self._first: tuple[int, float] | None = None  # first step seen and when: the start-up is not in the ETA
        self._last_step = 0
        self._num_firings = 0
        self._fitting = False  # LD-Align's guide
        self._started_s = self._phase_s = now()
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> "Progress":
        self._console.print(self._title, highlight=False, markup=False)
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Gone from the terminal meanwhile, so that something else can be printed."""
        self._live.stop()
        try:
            yield
        finally:
            if self._console.is_terminal:
                self._live.start()

    def update(self, phase: str, status: "Status | None") -> None:
        """Cheap enough for several calls a second; a line is written when the phase or the step has changed."""
        now = self._now()
        if phase != self._phase:
            self._phase, self._phase_s = phase, now
            self._print(f"[{clock(now - self._started_s)}] {phase}")
        if status is None:
            return
        self._status = status
        if (status.fit is not None) != self._fitting:
            self._fitting = not self._fitting
            self._print(f"[{clock(now - self._started_s)}] guide: {_guide_line(status)}")
        if status.step > self._last_step:
            self._last_step = status.step
            self._first = self._first or (status.step, now)
            self._print(f"[{clock(now - self._started_s)}] {self._step_line(status, now)}")
        for firing in status.firings[self._num_firings :]:
            self._num_firings += 1
            self._print(f"[{clock(now - self._started_s)}] {firing.action}: {firing.reason}")

    def eta_s(self, now: float) -> float | None:
        """Seconds to the last step at the pace since the first one; None before the second step."""
        if self._first is None or self._status is None or self._last_step <= self._first[0]:
            return None
        first_step, first_s = self._first
        pace_s = (now - first_s) / (self._last_step - first_step)
        return pace_s * (self._status.num_steps - self._last_step)

    def _step_line(self, status: "Status", now: float) -> str:
        step_s, eta_s = status.metrics.get("learner/step_s"), self.eta_s(now)
        scores = [
            (key.removeprefix("scorer/").replace("_", " "), key, "{:.2f}")
            for key in sorted(status.metrics)
            if key.startswith("scorer/") and key.endswith(("_sample", "_sample_positive", "_sample_negative"))
        ]
        parts = [f"step {status.step}/{status.num_steps}", shown((*STEP_FIELDS, *scores), status.metrics)]
        parts += [f"{step_s:.1f} s"] if step_s is not None else []
        parts += [f"ETA {clock(eta_s)}"] if eta_s else []
        return "  ".join(part for part in parts if part)

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _render(self) -> RenderableType:
        now, status = self._now(), self._status
        head = Text(f"{self._phase} for {clock(now - self._phase_s)}", style="bold")
        if status is None:
            return head
        bar = Table.grid(padding=(0, 1))
        eta_s = self.eta_s(now)
        bar.add_row(
            head,
            ProgressBar(total=status.num_steps, completed=status.step, width=30),
            f"{status.step}/{status.num_steps} steps",
            f"ETA {clock(eta_s)}" if eta_s else "",
        )
        roles = Table.grid(padding=(0, 2))
        for role, fields in ROLE_FIELDS:
            text = shown(fields, status.metrics) if role != "guide" else _guide_line(status)
            if text or role != "guide":  # only LD-Align has one
                roles.add_row(Text(role, style="cyan"), text)
        versions = f"samplers at version {status.sampler_version}, {status.ready_groups} groups ready"
        roles.add_row(Text("now", style="cyan"), versions)
        return Group(bar, roles)

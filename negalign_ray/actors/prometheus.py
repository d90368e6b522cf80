"""Metrics of a run on Ray's metrics endpoint, where Prometheus scrapes them (monitoring/series.py names them)."""

from collections.abc import Callable, Mapping, Sequence

from ray.util import metrics

from negalign_ray.events import EventKind
from negalign_ray.loops.watchdog import Activity
from negalign_ray.monitoring.series import (
    EVENTS,
    HISTOGRAMS,
    PLANNED_STEPS,
    ROLE_BUSY,
    ROLE_VERSION,
    Kind,
    Series,
    labelled,
)

Record = Callable[[float, dict[str, str]], None]  # value, labels: sets a gauge, adds to a counter or a histogram


def ray_series(series: Series) -> Record:
    if series.kind is Kind.HISTOGRAM:
        boundaries = list(HISTOGRAMS[series.key or ""])
        return metrics.Histogram(series.name, series.meaning, boundaries, series.labels).observe
    if series.kind is Kind.COUNTER:
        return metrics.Counter(series.name, series.meaning, series.labels).inc
    return metrics.Gauge(series.name, series.meaning, series.labels).set


class PrometheusSink:
    """Sink of MetricsWriter that also tells of the actors and of events."""

    def __init__(
        self,
        run: str,
        *,
        num_steps: int,
        activities: Callable[[], Sequence[Activity]],
        make: Callable[[Series], Record] = ray_series,
    ) -> None:
        self._run, self._num_steps, self._activities, self._make = run, num_steps, activities, make
        self._records: dict[str, Record] = {}
        self._totals: dict[tuple[str, ...], float] = {}  # what each counter has been told so far

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            series, labels = labelled(key)
            is_total = series.kind is Kind.COUNTER and series.unit != "s"
            (self._count_to if is_total else self._record)(series, value, **labels)
        self._record(PLANNED_STEPS, self._num_steps)
        for each in self._activities():
            actor = {"role": each.role, "rank": str(each.rank)}
            self._count_to(ROLE_BUSY, each.busy_s, **actor)
            if each.weight_version is not None:
                self._record(ROLE_VERSION, each.weight_version, **actor)

    def happened(self, kind: EventKind) -> None:
        self._record(EVENTS, 1.0, kind=str(kind))

    def close(self, *, failed: bool = False) -> None:
        """Nothing: Ray lets go of the gauges when their process ends."""

    def _count_to(self, series: Series, total: float, **labels: str) -> None:
        """A counter is told what has come since it was told last."""
        key = (series.name, *labels.values())
        more = total - self._totals.get(key, 0.0)
        if more > 0:
            self._totals[key] = total
            self._record(series, more, **labels)

    def _record(self, series: Series, value: float, **labels: str) -> None:
        if series.kind is Kind.COUNTER and value <= 0:  # no growth; Ray refuses it
            return
        if series.name not in self._records:
            self._records[series.name] = self._make(series)
        self._records[series.name](value, {"run": self._run, **labels})

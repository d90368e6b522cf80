"""What the dashboard shows: panels of queries over the series, the important ones in rows, the others by role."""

from collections.abc import Iterator
from dataclasses import dataclass

from negalign_ray.monitoring.series import EVENTS, PLANNED_STEPS, ROLE_BUSY, ROLE_VERSION, SERIES, Kind, Series

ONE_RUN = '{run=~"$run"}'  # the dashboard's variables: $run, and $window, over which rates are taken


@dataclass(frozen=True, slots=True)
class Query:
    expr: str
    legend: str  # {{label}} stands for a label's value


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    queries: tuple[Query, ...]
    unit: str  # as in the catalogue
    about: str = ""
    kind: str = "timeseries"


def value_of(series: Series) -> Query:
    """A gauge, or a total, which a resumed run goes on counting: its processes are one line by their maximum."""
    labels = ", ".join(series.labels)
    return Query(f"max by ({labels}) ({series.exported}{ONE_RUN})", _legend(series))


def count_of(series: Series) -> Query:
    """What every process counts from 0."""
    return Query(f"sum by ({', '.join(series.labels)}) ({series.exported}{ONE_RUN})", _legend(series))


def rate_of(series: Series) -> Query:
    """Of seconds: the share of time that they are."""
    labels = ", ".join(series.labels)
    return Query(f"sum by ({labels}) (rate({series.exported}{ONE_RUN}[$window]))", _legend(series))


def quantile_of(series: Series, share: float) -> Query:
    rate = f"sum by (run, le) (rate({series.exported}_bucket{ONE_RUN}[$window]))"
    return Query(f"histogram_quantile({share}, {rate})", f"{{{{run}}}} {share:.0%}")


def _legend(series: Series) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in series.labels)


def _named(query: Query, name: str) -> Query:
    """Beside other metrics in a panel the legend says which one it is."""
    return Query(query.expr, f"{name} {query.legend}")


def _query(series: Series) -> Query:
    if series.kind is Kind.HISTOGRAM:
        return quantile_of(series, 0.5)
    return rate_of(series) if series.unit == "s" else value_of(series)


def _of(title: str, *keys: str, kind: str = "timeseries") -> Panel:
    """Metrics of one unit in one panel."""
    all_series = [SERIES[key] for key in keys]
    queries = [_query(series) for series in all_series]
    if len(keys) > 1:
        names = (series.name.removeprefix("negalign_") for series in all_series)
        queries = [_named(query, name) for query, name in zip(queries, names, strict=True)]
    about = "\n\n".join(f"{series.meaning} {series.bad}" for series in all_series)
    unit = "0..1" if all_series[0].kind is Kind.COUNTER and all_series[0].unit == "s" else all_series[0].unit
    return Panel(title, tuple(queries), unit, about, kind)


STEP = SERIES["learner/version"]
ROWS: dict[str, tuple[Panel, ...]] = {
    "Learning": (
        Panel("Steps done", (value_of(STEP),), "steps", STEP.meaning, "stat"),
        Panel(
            "Progress",
            (Query(f"{value_of(STEP).expr} / {value_of(PLANNED_STEPS).expr}", "{{run}}"),),
            "0..1",
            "Optimizer steps done, of learners.steps.",
            "stat",
        ),
        _of("Groups trained on", "conductor/trained", kind="stat"),
        _of("Loss", "learner/loss"),
        _of(
            "Log-ratio of human and own answers",
            *(f"learner/{of}_logratio_nats" for of in ("negative", "positive", "sample")),
        ),
        _of(
            "Log-prob of fixed answers",
            *(f"learner/{of}_logprob_nats" for of in ("heldout_negative", "heldout_positive", "benign")),
        ),
        _of("Margin by behaviour", "behaviour/{behaviour}/margin_nats"),
        _of("Accuracy by behaviour", "behaviour/{behaviour}/accuracy_frac"),
        _of("Learning rate", "learner/lr"),
    ),
    "Roles": (
        Panel("Time at work", (rate_of(ROLE_BUSY),), "0..1", ROLE_BUSY.meaning),
        Panel(
            "Weight versions",
            (_named(value_of(STEP), "learner"), value_of(ROLE_VERSION)),
            "count",
            f"{STEP.meaning} {ROLE_VERSION.meaning}",
        ),
        _of("Tokens per second of work", "sampler/tokens_per_s", "learner/tokens_per_s"),
        Panel(
            "Time of a step",
            tuple(quantile_of(SERIES["learner/step_s"], share) for share in (0.5, 0.95)),
            "s",
            SERIES["learner/step_s"].meaning,
        ),
        _of(
            "Where the learner's time goes",
            *(f"learner/{what}_s" for what in ("pull_wait", "compute", "gather", "checkpoint")),
        ),
        _of("Groups in the buffer", "conductor/buffer_groups", "conductor/in_flight_groups"),
    ),
    "Rewards": (
        _of("Own samples, by head", "scorer/{head}_sample"),
        _of("Human negatives and positives, by head", "scorer/{head}_negative", "scorer/{head}_positive"),
        _of(
            "Samples under good and bad instructions", "scorer/{head}_sample_positive", "scorer/{head}_sample_negative"
        ),
    ),
    "Health": (
        _of("KL", "learner/kl_nats"),
        _of("Entropy", "sampler/entropy_nats"),
        _of(
            "Repetition, variety of openings, answers that ended",
            "sampler/repetition_frac",
            "sampler/distinct_openings_frac",
            "sampler/stop_frac",
        ),
        _of("Length of answers", "sampler/length_tokens"),
        _of("Staleness", "sampler/staleness_steps"),
        _of("Sampler against learner", "learner/mismatch_nats"),
        _of("Gradient norm", "learner/grad_norm"),
        _of(
            "Groups lost",
            *(f"conductor/{what}" for what in ("dropped_stale", "dropped_gate", "dropped_empty", "failed", "reissued")),
        ),
        Panel("Events", (count_of(EVENTS),), EVENTS.unit, EVENTS.meaning),
    ),
}


def other_rows() -> Iterator[tuple[str, list[Panel]]]:
    """Folded: every series of the catalogue that has no panel yet, by role."""
    shown = "\n".join(query.expr for row in ROWS.values() for panel in row for query in panel.queries)
    by_role: dict[str, list[Panel]] = {}
    for key, series in SERIES.items():
        if not any(f"{series.exported}{end}" in shown for end in ("{", "_bucket{")):
            role, _, name = key.partition("/")
            by_role.setdefault(role, []).append(_of(name, key))
    for role, panels in by_role.items():
        yield f"More of {role}", panels

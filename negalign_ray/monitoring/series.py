"""Every metric of the catalogue as a Prometheus time series: name, kind, labels.

    learner/kl_nats [nats/token]     -> negalign_learner_kl_nats_per_token{run}          last step's value
    reference/busy_s [s]             -> negalign_reference_busy_seconds_total{run}       added up over the steps
    conductor/orders [total]         -> negalign_conductor_orders_total{run}
    scorer/{head}_sample [score]     -> negalign_scorer_sample_score{run,head}

Ray puts `ray_` before the names of all metrics, and `_total` behind those of counters.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from negalign_ray.metrics import METRICS, TOTAL, catalogue_key


class Kind(StrEnum):
    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Series:
    name: str  # as it is given to Ray
    kind: Kind
    unit: str
    meaning: str
    bad: str = ""  # what a bad value hints at
    labels: tuple[str, ...] = ("run",)
    key: str | None = None  # in the catalogue; None = it is no metric of a step

    @property
    def exported(self) -> str:
        """As Prometheus has it; a histogram has it with _bucket, _sum or _count behind."""
        return f"ray_{self.name}{'_total' if self.kind is Kind.COUNTER else ''}"


UNITS = {  # unit in the catalogue -> end of the name
    "nats": "nats",
    "nats/token": "nats_per_token",
    "0..1": "ratio",
    "s": "seconds",
    "tokens": "tokens",
    "tokens/s": "tokens_per_second",
    "steps": "steps",
    "groups": "groups",
    "score": "score",
    "norm": "norm",
    "distance": "distance",
    "weight": "weight",
    "ratio": "ratio",
    "count": "",
    TOTAL: "",
    ">= 1": "",
    "per step": "",
    "of the method": "",
}
# What a key has at its end to say its unit, which the name says in Prometheus' words instead.
_KEY_UNIT = re.compile(r"(_per_token)?_(nats|frac|s|tokens|steps|groups)$|tokens_per_s$|^num_(?=groups$)")
HISTOGRAMS = {"learner/step_s": (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)}

ROLE_BUSY = Series(
    "negalign_role_busy_seconds",
    Kind.COUNTER,
    "s",
    "Time that an actor has worked, as the conductor sees it; its rate is the share of time that it is not idle.",
    labels=("run", "role", "rank"),
)
ROLE_VERSION = Series(
    "negalign_role_weight_version",
    Kind.GAUGE,
    "count",
    "Weight version that a sampler's newest call was made with.",
    labels=("run", "role", "rank"),
)
EVENTS = Series(
    "negalign_run_events",
    Kind.COUNTER,
    TOTAL,
    "Lines of events.jsonl written by the conductor, by kind: fault, replace, scale, guard, rollback, checkpoint, "
    "resume.",
    labels=("run", "kind"),
)
PLANNED_STEPS = Series("negalign_run_planned_steps", Kind.GAUGE, "steps", "Setting learners.steps.")
OF_RUNS = (ROLE_BUSY, ROLE_VERSION, EVENTS, PLANNED_STEPS)  # beside those of the catalogue


def _series_of(key: str) -> Series:
    metric = METRICS[key]
    role, _, rest = key.partition("/")
    unit = UNITS[metric.unit]
    words = re.sub(r"{\w+}", "", rest).strip("/_")
    stem = _KEY_UNIT.sub("", words)
    says_unit = f"_{stem}".endswith(f"_{unit}")
    kind = Kind.HISTOGRAM if key in HISTOGRAMS else Kind.COUNTER if metric.unit in (TOTAL, "s") else Kind.GAUGE
    return Series(
        "_".join(part for part in ("negalign", role, stem, "" if says_unit else unit) if part),
        kind,
        metric.unit,
        metric.meaning,
        metric.bad,
        ("run", *re.findall(r"{(\w+)}", key)),
        key,
    )


SERIES: Mapping[str, Series] = {key: _series_of(key) for key in METRICS}


def labelled(key: str) -> tuple[Series, dict[str, str]]:
    """The series of a key as it is written, and the labels that the key names. Raises UnknownMetricError.

    scorer/toxicity_sample -> the series of scorer/{head}_sample, {"head": "toxicity"}
    """
    found, labels = catalogue_key(key)
    return SERIES[found], labels

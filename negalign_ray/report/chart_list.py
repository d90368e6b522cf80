"""Which curves are drawn together, under which names. A metric that no chart names is drawn alone, at the end.

A tone is a colour of the page's style sheet: those of roles mean the same in every chart, "1", "2", ... mean nothing.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

ORIGINS = {  # of scored answers (records.ResponseCard.origin): label, tone
    "negative": ("human negatives", "negative"),
    "positive": ("human positives", "positive"),
    "sample": ("own samples", "sample"),
    "sample_positive": ("own, asked for good", "sample"),
    "sample_negative": ("own, asked for bad", "negative-sample"),
}
_HEAD = re.compile(r"scorer/(.+?)_(sample_positive|sample_negative|sample|negative|positive)")
_EVALUATED = re.compile(r"eval/(.+_score(_benign_prompts)?|.*refusal_frac.*)")
_BEHAVIOUR = re.compile(r"behaviour/(.+)/margin_nats", re.DOTALL)
MAX_BEHAVIOURS = 8  # as many as there are neutral tones


@dataclass(frozen=True)
class Line:
    key: str  # of the metric
    label: str
    tone: str


@dataclass(frozen=True)
class ChartPlan:
    title: str
    lines: tuple[Line, ...]
    note: str = ""


@dataclass(frozen=True)
class SectionPlan:
    title: str
    charts: tuple[ChartPlan, ...]
    is_folded: bool = False


def _alone(title: str, key: str, tone: str = "1") -> ChartPlan:
    return ChartPlan(title, (Line(key, title, tone),))


LOSS = (
    _alone("Loss", "learner/loss"),
    ChartPlan(
        "Margin and its terms",
        (
            Line("learner/anchor_nats", "own samples (anchor)", "sample"),
            Line("learner/negative_nats", "negatives", "negative"),
            Line("learner/positive_nats", "positives", "positive"),
            Line("learner/rank_nats", "ranking", "1"),
            Line("learner/sft_nats", "likelihood", "benign"),
            Line("learner/margin_nats", "margin", "2"),
        ),
    ),
)
LIKELIHOODS = (
    ChartPlan(
        "Log-ratio to the reference, training batch",
        (
            Line("learner/sample_logratio_nats", "own samples", "sample"),
            Line("learner/negative_logratio_nats", "negatives", "negative"),
            Line("learner/positive_logratio_nats", "positives", "positive"),
        ),
    ),
    ChartPlan(
        "Log-prob of fixed texts, never trained on",
        (
            Line("learner/benign_logprob_nats", "benign answers", "benign"),
            Line("learner/heldout_negative_logprob_nats", "negatives", "negative"),
            Line("learner/heldout_positive_logprob_nats", "positives", "positive"),
        ),
    ),
)
COLLAPSE = (
    _alone("KL to the reference", "learner/kl_nats"),
    _alone("Entropy", "sampler/entropy_nats"),
    _alone("Repeated 4-grams", "sampler/repetition_frac"),
    _alone("Different openings", "sampler/distinct_openings_frac"),
    _alone("Length of answers", "sampler/length_tokens"),
    _alone("Gradient norm", "learner/grad_norm"),
)
FRESHNESS = (
    _alone("Staleness of samples", "sampler/staleness_steps"),
    _alone("Mismatch, sampler against learner", "learner/mismatch_nats"),
    ChartPlan(
        "Dropped so far",
        (
            Line("conductor/dropped_gate", "by the gate", "1"),
            Line("conductor/dropped_stale", "too old", "2"),
            Line("conductor/dropped_empty", "empty or repeated", "3"),
            Line("conductor/failed", "scorer failed", "4"),
        ),
    ),
)
SPEED = (
    ChartPlan(
        "Tokens per second",
        (
            Line("sampler/tokens_per_s", "samplers, busy", "sample"),
            Line("learner/tokens_per_s", "learners, computing", "2"),
        ),
    ),
    _alone("Time of a weight update", "sampler/weights_s"),
    _alone("Groups in the buffer", "conductor/buffer_groups"),
)


def sections(keys: Iterable[str], *, groups_of: dict[str, float]) -> list[SectionPlan]:
    """For the metrics `keys` that some run measured; `groups_of` counts the groups of every behaviour."""
    keys = list(dict.fromkeys(keys))
    planned = [
        SectionPlan("Evaluated while training", _evaluated(keys)),
        SectionPlan("Loss and margins", (*LOSS, *_behaviours(keys, groups_of))),
        SectionPlan("Likelihoods", LIKELIHOODS),
        SectionPlan("Rewards", _heads(keys)),
        SectionPlan("Signs of collapse", COLLAPSE),
        SectionPlan("Freshness and losses on the way", FRESHNESS),
        SectionPlan("Speed", SPEED),
    ]
    named = {line.key for section in planned for chart in section.charts for line in chart.lines}
    rest = [key for key in keys if key not in named and "/" in key and not key.startswith("behaviour/")]
    planned.append(SectionPlan("All other metrics", tuple(_alone(key, key) for key in sorted(rest)), is_folded=True))
    return [section for section in (_measured(section, set(keys)) for section in planned) if section.charts]


def _measured(section: SectionPlan, keys: set[str]) -> SectionPlan:
    """Without what no run measured."""
    charts = []
    for chart in section.charts:
        lines = tuple(line for line in chart.lines if line.key in keys)
        if lines:
            charts.append(ChartPlan(chart.title, lines, chart.note))
    return SectionPlan(section.title, tuple(charts), section.is_folded)


def _evaluated(keys: list[str]) -> tuple[ChartPlan, ...]:
    """Scores of the judges and rates of refusal, which evaluation.every measures on the way."""
    shown = [key for key in keys if _EVALUATED.fullmatch(key)]
    return tuple(_alone(key.removeprefix("eval/").replace("_", " "), key) for key in sorted(shown))


def _heads(keys: list[str]) -> tuple[ChartPlan, ...]:
    """One chart for every reward head, a line for every role."""
    found: dict[str, list[str]] = {}
    for key in keys:
        match = _HEAD.fullmatch(key)
        if match:
            found.setdefault(match[1], []).append(match[2])
    return tuple(
        ChartPlan(
            f"Score by {head}",
            tuple(Line(f"scorer/{head}_{origin}", *ORIGINS[origin]) for origin in ORIGINS if origin in origins),
        )
        for head, origins in sorted(found.items())
    )


def _behaviours(keys: list[str], groups_of: dict[str, float]) -> tuple[ChartPlan, ...]:
    names = sorted({match[1] for key in keys if (match := _BEHAVIOUR.fullmatch(key))})
    if not names:
        return ()
    largest = sorted(names, key=lambda name: -groups_of.get(name, 0.0))[:MAX_BEHAVIOURS]
    lines = [
        Line(f"behaviour/{name}/margin_nats", name, str(number + 1))
        for number, name in enumerate(name for name in names if name in largest)
    ]
    left = len(names) - len(lines)
    note = f"The {len(lines)} largest of {len(names)} behaviours; all are in metrics.jsonl." if left else ""
    return (ChartPlan("Margin by behaviour", tuple(lines), note),)

"""Guards against collapse: rules over the rows of metrics, one look per step.

    row of a step --read--> last `window` values --badness, against the first `window` values--> above the limit? fires

Nothing here is saved: a resumed run shows its guards the rows of metrics.jsonl again and they know what they knew.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from negalign_ray.config import Guard, GuardsConfig, HeadConfig

Row = Mapping[str, float | int | None]


@dataclass(frozen=True, slots=True)
class Firing:
    """A guard that fired: what the log, the terminal and summary.json say of it."""

    guard: str  # its name under `guards` in the configuration
    metric: str  # what it reads
    first_step: int  # of the oldest value that it looked at
    step: int  # optimizer steps done
    value: float  # of the guard's own measure, which `limit` bounds
    limit: float
    action: str
    reason: str  # one sentence with all of it, and the remedy

    @property
    def ends_the_run(self) -> bool:
        return self.action in ("stop", "rollback")


@dataclass(frozen=True, slots=True)
class Reading:
    """How near a guard is to firing."""

    guard: str
    metric: str
    value: float  # of the guard's own measure; 0 or less is as good as at the start
    limit: float
    fired: bool  # and has not recovered since


@dataclass(frozen=True)
class Rule:
    """`badness(now, start)` of the mean of the last values against the mean of the first ones; high is bad."""

    name: str
    metric: str
    config: Guard
    badness: Callable[[float, float], float]
    meaning: str  # "{value:.2g}" stands for the badness
    remedy: str
    read: Callable[[Row], float | None] | None = None  # None: the metric itself
    must_stand_out: bool = False  # asleep unless the start is above 0 by two standard errors


@dataclass(slots=True)
class _Watch:
    """A rule and the values it has seen."""

    rule: Rule
    first: list[float] = field(default_factory=list)
    last: deque[tuple[int, float]] = field(default_factory=deque)  # (step, value)
    badness: float | None = None  # None = too little seen
    fired: bool = False  # and has not recovered since

    def observe(self, step: int, row: Row) -> Firing | None:
        """At most one firing until the value has been inside the limit again."""
        rule, window = self.rule, self.rule.config.window
        value = rule.read(row) if rule.read else row.get(rule.metric)
        if value is None:
            return None
        if len(self.first) < window:
            self.first.append(value)
        self.last.append((step, value))
        if len(self.last) > window:
            self.last.popleft()
        if len(self.last) < window or (rule.must_stand_out and not _stands_out(self.first)):
            return None
        self.badness = badness = rule.badness(fmean(value for _, value in self.last), fmean(self.first))
        was_fired, self.fired = self.fired, badness > rule.config.limit
        return _firing(rule, self.last[0][0], step, badness) if self.fired and not was_fired else None


class Guards:
    """All rules of a run. `observe` is called once for every step, in order."""

    def __init__(
        self, config: GuardsConfig, *, heads: Sequence[HeadConfig] = (), unlearns_own_answers: bool = False
    ) -> None:
        """`unlearns_own_answers`: of a method that pushes its own samples down (SPIN, LD-Align)."""
        rules = [*_rules(config), *(_drift(config, head) for head in heads)] if config.enabled else []
        asleep = {"own_answers"} if unlearns_own_answers else set()
        self._watches = [_Watch(rule) for rule in rules if rule.config.action != "off" and rule.name not in asleep]

    def observe(self, step: int, row: Row) -> list[Firing]:
        """What fires at `step` (optimizer steps done), given its row of metrics."""
        firings = (watch.observe(step, row) for watch in self._watches)
        return [firing for firing in firings if firing is not None]

    def rearm(self) -> None:
        """Those that would have ended the run by now fire again where their values are still too bad."""
        for watch in self._watches:
            watch.fired = watch.fired and watch.rule.config.action == "warn"

    def readings(self) -> list[Reading]:
        """Of every guard that has seen enough, as it is now."""
        return [
            Reading(watch.rule.name, watch.rule.metric, watch.badness, watch.rule.config.limit, watch.fired)
            for watch in self._watches
            if watch.badness is not None
        ]


def _firing(rule: Rule, first_step: int, step: int, badness: float) -> Firing:
    config = rule.config
    over = f"over the last {config.window} values" if config.window > 1 else "now"
    reason = (
        f"guard {rule.name} at step {step}: {rule.meaning.format(value=badness)} {over} ({rule.metric}; "
        f"guards.{rule.name}.limit={config.limit:g}); {rule.remedy}"
    )
    return Firing(rule.name, rule.metric, first_step, step, badness, config.limit, config.action, reason)


def _rules(config: GuardsConfig) -> list[Rule]:
    slower = "lower learners.lr or the weight of the negatives, or take fewer steps"
    return [
        Rule(
            "non_finite",
            "conductor/nonfinite_values",
            config.non_finite,
            lambda now, start: now,
            "{value:.0f} values of metrics were not finite",
            "look at the nulls of metrics.jsonl",
        ),
        Rule(
            "benign_logprob",
            "learner/benign_logprob_nats",
            config.benign_logprob,
            lambda now, start: start - now,
            "good answers to benign prompts have lost {value:.2f} nats a token",
            slower,
        ),
        Rule(
            "kl",
            "learner/kl_nats",
            config.kl,
            lambda now, start: abs(now),
            "own answers are {value:.2f} nats a token from the reference",
            slower,
        ),
        Rule(
            "own_answers",
            "learner/kl_nats",
            config.own_answers,
            lambda now, start: -now,
            "own answers are {value:.2f} nats a token less likely than under the reference",
            f"{slower}, or raise sampling.num_samples",
        ),
        Rule(
            "entropy",
            "sampler/entropy_nats",
            config.entropy,
            _share_lost,
            "{value:.0%} of the entropy of the first steps are gone",
            slower,
        ),
        Rule(
            "repetition",
            "sampler/repetition_frac",
            config.repetition,
            lambda now, start: now - start,
            "the share of repeated 4-grams has risen by {value:.2f}",
            slower,
        ),
        Rule(
            "openings",
            "sampler/distinct_openings_frac",
            config.openings,
            _share_lost,
            "{value:.0%} of the variety of openings is gone",
            "read samples/rank-0.jsonl: does every prompt get the same answer?",
        ),
        Rule(
            "length",
            "sampler/length_tokens",
            config.length,
            lambda now, start: abs(now / start - 1.0) if start else 0.0,
            "the length of answers has changed by {value:.0%}",
            "read samples/rank-0.jsonl; length is being learned",
        ),
    ]


def _drift(config: GuardsConfig, head: HeadConfig) -> Rule:
    """How much of their lead over the step's human negatives the own samples have lost, in the head's own direction."""
    sign = 1.0 if head.direction == "harm" else -1.0

    def lead(row: Row) -> float | None:
        bad, own = row.get(f"scorer/{head.name}_negative"), row.get(f"scorer/{head.name}_sample")
        if own is None:  # NEAT samples under instructions of two kinds; the answers to good ones are meant to be good
            own = row.get(f"scorer/{head.name}_sample_positive")
        return None if bad is None or own is None else sign * (bad - own)

    return Rule(
        "reward_drift",
        f"scorer/{head.name}_sample",
        config.reward_drift,
        _share_lost,
        "own samples have lost {value:.0%} of their lead over the human negatives",
        "training backfires, or the head is being misled",
        read=lead,
        must_stand_out=True,
    )


def _share_lost(now: float, start: float) -> float:
    """1.0 at 0, 0.0 at the start; 0.0 where there was nothing to lose."""
    return 1.0 - now / start if start > 0 else 0.0


def _stands_out(values: Sequence[float]) -> bool:
    """The mean is above 0 by more than two standard errors; never so for fewer than two values."""
    return len(values) > 1 and fmean(values) > 2 * stdev(values) / len(values) ** 0.5

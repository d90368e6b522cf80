"""Which metrics are drawn as curves, and their values from the rows of a run."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from negalign_ray.metrics import Row

Better = Literal["down", "up"]


@dataclass(frozen=True, slots=True)
class Curve:
    section: str
    label: str
    values: tuple[float, ...]  # the measured ones, oldest first; at least one
    num_steps: int  # that they are spread over
    style: str = "{:.3f}"  # of one value
    better: Better | None = None  # which way is good, where one of them is


@dataclass(frozen=True, slots=True)
class _Line:
    section: str
    label: str
    key: str
    style: str = "{:.3f}"
    better: Better | None = None


LOSS = "learner/loss"
LINES = (
    _Line("loss", "loss", LOSS, better="down"),
    _Line("log-ratios", "log-ratio bad", "learner/negative_logratio_nats", "{:+.2f}", "down"),
    _Line("log-ratios", "log-ratio good", "learner/positive_logratio_nats", "{:+.2f}", "up"),
    _Line("log-ratios", "log-ratio own", "learner/sample_logratio_nats", "{:+.2f}"),
    _Line("log-probs", "log-prob bad", "learner/heldout_negative_logprob_nats", "{:+.2f}", "down"),
    _Line("log-probs", "log-prob good", "learner/heldout_positive_logprob_nats", "{:+.2f}", "up"),
    _Line("log-probs", "log-prob benign", "learner/benign_logprob_nats", "{:+.2f}", "up"),
    _Line("evaluation", "eval refusals", "eval/refusal_frac_harmful_prompts", "{:.0%}"),
    _Line("evaluation", "eval over-refusal", "eval/overrefusal_frac", "{:.0%}", "down"),
    _Line("health", "KL", "learner/kl_nats", "{:+.3f}"),
    _Line("health", "entropy", "sampler/entropy_nats", "{:.2f}"),
    _Line("health", "repetition", "sampler/repetition_frac", "{:.0%}", "down"),
    _Line("health", "length", "sampler/length_tokens", "{:.0f} tok"),
    _Line("health", "staleness", "sampler/staleness_steps", "{:.1f}"),
    _Line("health", "gradient", "learner/grad_norm", "{:.1f}"),
    _Line("health", "step time", "learner/step_s", "{:.1f} s"),
)
_ORIGINS = {  # of own samples: under no instruction, a good or a bad one (NEAT)
    "_sample": "",
    "_sample_positive": " (+)",
    "_sample_negative": " (-)",
}
SECTIONS = ("loss", "log-ratios", "log-probs", "rewards", "evaluation", "health")


def curves_of(rows: Sequence[Row], *, harm_heads: Sequence[str] = ()) -> tuple[Curve, ...]:
    """Those that were measured, in the order of SECTIONS. Low scores of `harm_heads` are good, high ones of others."""
    lines = [*LINES, *_reward_lines(rows, harm_heads)]
    lines.sort(key=lambda line: SECTIONS.index(line.section))
    curves = (
        Curve(line.section, line.label, values_of(rows, line.key), len(rows), line.style, line.better)
        for line in lines
        if any(row.get(line.key) is not None for row in rows)
    )
    return tuple(curves)


def values_of(rows: Sequence[Row], key: str) -> tuple[float, ...]:
    return tuple(float(value) for row in rows if (value := row.get(key)) is not None)


def _reward_lines(rows: Sequence[Row], harm_heads: Sequence[str]) -> Iterator[_Line]:
    """What reward heads say of the step's own samples, and judges of the answers to held-out prompts."""
    keys = {key for row in rows for key in row}
    for key in sorted(key for key in keys if re.fullmatch("eval/[a-z][a-z0-9_]*_score", key)):
        head = key.removeprefix("eval/").removesuffix("_score")
        yield _Line("evaluation", f"eval {head}", key, better="down" if head in harm_heads else "up")
    for key in sorted(key for key in keys if key.startswith("scorer/")):
        head, sample, origin = key.removeprefix("scorer/").rpartition("_sample")
        if sample and sample + origin in _ORIGINS:
            label = f"{head} score{_ORIGINS[sample + origin]}"
            yield _Line("rewards", label, key, better="down" if head in harm_heads else "up")

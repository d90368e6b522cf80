"""One honest sentence about a run, and what belongs beside it; computed from the paired intervals of summary.json.

A change whose 95 % interval holds zero is called unclear, never "unchanged": little data shows little. So is that of a
share which the exact test on its pairs does not confirm (evaluation/significance.py).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from negalign_ray.evaluation.table import ALPHA, number, verdict_on
from negalign_ray.evaluation.training_notes import training_warnings
from negalign_ray.events import EventKind
from negalign_ray.report.read import RunFiles

Tone = Literal["better", "mixed", "worse", "unclear", "neutral"]
WORDS: dict[Tone, str] = {
    "better": "Less harm",
    "mixed": "Less harm, at a cost",
    "worse": "More harm",
    "unclear": "Unclear",
    "neutral": "No verdict",
}
Summary = Mapping[str, Any]
NOTHING = "–"
WORSE = "Worse"  # the lead of what was measured and is worse; guards and judges warn under leads of their own
# What a fall of harm may have cost. KL is not among them: every training moves the model.
SIDE_EFFECTS = (
    "benign_perplexity",
    "human_benign_logprob_per_token",
    "choices_accuracy_frac",
    "choices_target_logprob",
    "refusal_frac_benign_prompts",
    "overrefusal_frac",
    "distinct_2",
    "repetition_frac",
    "mean_length_tokens",
)


@dataclass(frozen=True)
class Note:
    tone: Tone
    lead: str  # WORSE
    items: tuple[tuple[str, str], ...]  # ("repeated 4-grams", "0.114 → 0.242"); a sentence has no values


@dataclass(frozen=True)
class Verdict:
    """`headline` is one sentence about harm and its price; `notes` are what else the reader must know."""

    tone: Tone
    word: str
    headline: str
    notes: tuple[Note, ...] = ()


def verdict_of(run: RunFiles) -> Verdict:
    notes = tuple(_notes(run))
    harm, headline = _headline(run)
    if harm == "better" and any(note.lead == WORSE for note in notes):
        harm = "mixed"
    return Verdict(harm, WORDS[harm], headline, notes)


def harm_key(summary: Summary) -> str | None:
    """The mean score of the first head of direction harm, the one that the verdict speaks of."""
    for name, head in summary.get("heads", {}).items():
        if head["direction"] == "harm" and f"{name}_score" in summary["figures"]:
            return f"{name}_score"
    return None


def shown(value: float | None, *, sign: bool = False) -> str:
    """As in the tables of the terminal, with a minus sign instead of a hyphen; NOTHING for a missing one."""
    return NOTHING if value is None else number(value, sign=sign).replace("-", "−")


def interval_text(interval: Mapping[str, float | None]) -> str:
    """ "−0.278 to −0.208" """
    return f"{shown(interval['low'], sign=True)} to {shown(interval['high'], sign=True)}"


def _headline(run: RunFiles) -> tuple[Tone, str]:
    summary = run.summary
    if not run.is_compared:
        return "neutral", _why_not_compared(run)
    key = harm_key(summary)
    if key is None:
        return "neutral", "No verdict on harm: evaluation.heads has no head of direction harm."
    change, scorer = summary["difference"].get(key), key.removesuffix("_score")
    if change is None or change["low"] is None:
        return "neutral", f"No verdict on harm: too few prompts were scored by {scorer} for an interval."
    values = f"from {shown(summary['before'].get(key))} to {shown(summary['after'].get(key))}"
    interval = f"95 % interval of the change {interval_text(change)}"
    said = verdict_on(summary, key)
    price = _price(summary)
    if said == "unclear":
        return (
            "unclear",
            f"No clear change in the harm scored by {scorer}: {values} ({interval}, with zero in it){price}.",
        )
    tone: Tone = "better" if said == "better" else "worse"
    return tone, f"Harm scored by {scorer} {'fell' if tone == 'better' else 'rose'} {values} ({interval}){price}."


def _price(summary: Summary) -> str:
    """The second half of the sentence: what became of benign text."""
    key, what = "benign_perplexity", "the perplexity of good answers to benign prompts"
    said = verdict_on(summary, key) if key in summary["figures"] else ""
    if not said:
        return ""
    if said == "unclear":
        return f", with no clear change in {what}"
    joined = "while" if said == "worse" else "and"
    values = f"from {shown(summary['before'][key])} to {shown(summary['after'][key])}"
    return f", {joined} {what} {'rose' if said == 'worse' else 'fell'} {values}"


def _why_not_compared(run: RunFiles) -> str:
    if run.is_measured:
        return "One model was measured; there is nothing to compare it with."
    if run.summary:
        return "No verdict: the model was not evaluated (evaluation.enabled=false)."
    steps, wanted = (run.rows[-1]["step"] if run.rows else 0), run.setting("learners.steps")
    progress = f"step {steps} of {wanted}" if wanted else f"step {steps}"
    ends = [event for event in run.events if event.kind in (EventKind.FAILED, EventKind.RESUME)]
    if ends and ends[-1].kind == EventKind.FAILED:
        return f"No verdict: the run failed at {progress}: {ends[-1].reason}"
    return f"No verdict yet: the run has no summary.json; it stands at {progress}, or was cut short there."


def _notes(run: RunFiles) -> Iterator[Note]:
    if run.is_compared:
        yield from _changes(run.summary)
        yield from _shared_judges(run)
    for warning in training_warnings(run.rows):
        yield _sentence("worse", "Training", warning)
    yield from _endings(run)
    for problem in run.problems:
        yield _sentence("neutral", "Incomplete", problem)


def _sentence(tone: Tone, lead: str, text: str) -> Note:
    return Note(tone, lead, ((text, ""),))


def _changes(summary: Summary) -> Iterator[Note]:
    """Other heads, answers to benign prompts and side effects, by what their intervals allow to say."""
    main = harm_key(summary)
    heads = [f"{name}_score{where}" for name in summary.get("heads", {}) for where in ("", "_benign_prompts")]
    said: dict[str, list[tuple[str, str]]] = {}
    for key in (*(key for key in heads if key != main), *SIDE_EFFECTS):
        if key not in summary["figures"] or key not in summary["difference"]:
            continue
        values = f"{shown(summary['before'].get(key))} → {shown(summary['after'].get(key))}"
        said.setdefault(verdict_on(summary, key), []).append((summary["figures"][key]["title"], values))
    for row in summary.get("win_rates", ()):
        rate = row["win_rate"]["mean"]
        if rate is not None and rate < 0.5 and row["p_value"] < ALPHA:
            said.setdefault("worse", []).append((f"wins by {row['judge']}, {row['prompts']} prompts", shown(rate)))
    leads: tuple[tuple[str, Tone, str], ...] = (
        ("worse", "worse", WORSE),
        ("changed", "neutral", "Changed"),
        ("better", "better", "Also better"),
        ("unclear", "unclear", "No clear change"),
        ("", "neutral", "Without an interval"),
    )
    for word, tone, lead in leads:
        if word in said:
            yield Note(tone, lead, tuple(said[word]))


def _shared_judges(run: RunFiles) -> Iterator[Note]:
    """A scorer that shaped the training says little when it also judges."""
    gate, reward = run.setting("sampling.reward_gate.head"), run.setting("method.reward_head")
    trained = {
        head.get("target"): head.get("name")
        for head in run.setting("scorers.heads", ())
        if head.get("name") in {gate, reward}
    }
    for head in run.setting("evaluation.heads", ()):
        if head.get("target") in trained:
            yield _sentence(
                "worse",
                "Not independent",
                f"{head.get('name')} judges with the model that the training used as {trained[head['target']]}.",
            )


def _endings(run: RunFiles) -> Iterator[Note]:
    summary = run.summary
    stopped_by, rolled_back_to = summary.get("stopped_by"), summary.get("rolled_back_to")
    steps, wanted = summary.get("steps"), run.setting("learners.steps")
    if stopped_by:
        back = f" The model is that of step {rolled_back_to}." if rolled_back_to is not None else ""
        yield _sentence("worse", "Ended by a guard", f"{stopped_by['reason']}.{back}")
    elif steps is not None and wanted is not None and steps < wanted:
        yield _sentence("neutral", "Ended early", f"after {steps} of {wanted} steps.")
    warnings = [f"{row['guard']} at step {row['step']}" for row in summary.get("guards") or () if row != stopped_by]
    if warnings:
        yield _sentence("worse", "Guards that warned", ", ".join(warnings) + ".")
    failed = (summary.get("orders") or {}).get("failed", 0)
    if failed:
        yield _sentence("neutral", "Orders that failed", f"{failed} of {summary['orders'].get('issued', '?')}.")

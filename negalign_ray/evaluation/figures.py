"""The figures of a summary: key, meaning, which way is better, and how each is computed from a `Side`.

| key | unit | better |
|---|---|---|
| `<head>_score` | mean raw score of answers to held-out prompts | lower (direction harm), higher (help) |
| `<head>_rate` | share 0..1 of them above the head's threshold | as above |
| `<head>_score_benign_prompts`, `<head>_rate_benign_prompts` | the same on benign prompts: false alarms | as above |
| `negatives_logprob`, `..._per_token` | nats, mean per held-out negative / per token | lower |
| `human_benign_logprob`, `..._per_token` | nats, good human answers to held-out prompts | higher |
| `own_answers_logprob`, `..._per_token` | nats, the before-model's own answers | higher |
| `benign_logprob`, `..._per_token` | nats, good answers to the benign prompts | higher |
| `benign_perplexity` | exp(-nats per token) of the same | lower |
| `choices_accuracy_frac`, `..._per_token` | share 0..1 of questions whose right choice is the most likely | higher |
| `choices_target_logprob` | nats, mean log-prob of the right choice of a question | higher |
| `mean_length_tokens` | tokens per answer to held-out prompts | unchanged |
| `distinct_1`, `distinct_2`, `distinct_3` | share 0..1 of different n-grams over those answers | higher |
| `repetition_frac` | mean share 0..1 of repeated 4-grams in an answer | lower |
| `refusal_frac_harmful_prompts` | share 0..1 of refused held-out prompts | neither (many deserve an answer) |
| `refusal_frac_benign_prompts` | share 0..1 of refused benign prompts | lower |
| `overrefusal_frac` | share 0..1 of refused prompts that sound unsafe and are not | lower |
| `entropy_per_token` | nats per token: entropy of the next token along the side's own answers, both kinds | unchanged |
| `kl_per_token` | nats per token: log pi - log ref of the side's own answers, both kinds of prompts | lower |

`kl_per_token` is an unbiased estimate of KL(pi || ref) only on answers sampled at temperature 1; on greedy answers it
is the mean log-ratio along the greedy path.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from negalign_ray.config import HeadConfig
from negalign_ray.data.ngrams import repetition_frac
from negalign_ray.evaluation.intervals import Sums, Transform
from negalign_ray.evaluation.measures import distinct_contributions
from negalign_ray.evaluation.side import Answers, Choices, Likelihoods, Side
from negalign_ray.rewards.refusal import is_refusal

Better = Literal["lower", "higher", "unchanged", "neither"]
NGRAMS = {1: "tokens", 2: "bigrams", 3: "trigrams"}


def exp_negative(values: np.ndarray) -> np.ndarray:
    """Perplexity of a mean log-prob."""
    return np.exp(-values)


@dataclass(frozen=True)
class Figure:
    """One figure: a ratio of sums over items."""

    key: str
    title: str
    better: Better
    sums: Sums
    behaviours: tuple[str | None, ...]
    transform: Transform | None = None
    is_rate: bool = False  # items are 0 or 1
    with_ratio: bool = False  # after / before is reported too
    prompt_ids: tuple[int, ...] | None = None  # of the items, where known: what `bootstrap` pools and pairs by

    def only(self, behaviour: str) -> "Figure | None":
        """The same figure over one behaviour's items; None when it has none."""
        rows = np.array([item == behaviour for item in self.behaviours], dtype=bool)
        if not rows.any():
            return None
        return replace(
            self,
            sums=Sums(self.sums.numerators[rows], self.sums.denominators[rows]),
            behaviours=tuple(item for item in self.behaviours if item == behaviour),
            prompt_ids=self.prompt_ids and tuple(np.asarray(self.prompt_ids)[rows].tolist()),
        )


def figures_of(side: Side, heads: Sequence[HeadConfig]) -> list[Figure]:
    """Every figure that the side has items for, in the order of the table."""
    figures: list[Figure] = []
    for head in heads:
        figures += _head(side.harmful, head, suffix="", where="")
        figures += _head(side.benign, head, suffix="_benign_prompts", where=", benign prompts")
    figures += _likelihood("negatives", "held-out negatives", "lower", side.negatives)
    figures += _likelihood("human_benign", "benign human answers", "higher", side.human_benign)
    figures += _likelihood("own_answers", "own answers before", "higher", side.own_answers)
    figures += _likelihood("benign", "benign answers", "higher", side.packaged_benign)
    return figures + _perplexity(side.packaged_benign) + _accuracy(side.choices) + _style(side)


def _head(answers: Answers, head: HeadConfig, *, suffix: str, where: str) -> list[Figure]:
    if head.name not in answers.scores:
        return []
    better: Better = "lower" if head.direction == "harm" else "higher"
    scores = np.asarray(answers.scores[head.name], dtype=np.float64)
    hits = (scores > head.threshold).astype(np.float64)
    mean, share = f"{head.name}, mean{where}", f"{head.name} > {head.threshold:g}, share{where}"
    score = Figure(f"{head.name}_score{suffix}", mean, better, Sums.of(scores), answers.behaviours)
    rate = Figure(f"{head.name}_rate{suffix}", share, better, Sums.of(hits), answers.behaviours, is_rate=True)
    return [replace(figure, prompt_ids=answers.prompt_ids) for figure in (score, rate)]


def _likelihood(key: str, title: str, better: Better, items: Likelihoods) -> list[Figure]:
    if not items.logprobs:
        return []
    whole, per_token = Sums.of(items.logprobs), Sums.of(items.logprobs, items.lengths)
    figures = [
        Figure(f"{key}_logprob", f"log-prob, {title}", better, whole, items.behaviours),
        Figure(f"{key}_logprob_per_token", f"log-prob per token, {title}", better, per_token, items.behaviours),
    ]
    return [replace(figure, prompt_ids=items.prompt_ids) for figure in figures]


def _perplexity(items: Likelihoods) -> list[Figure]:
    if not items.logprobs:
        return []
    sums = Sums.of(items.logprobs, items.lengths)
    title = "perplexity, benign answers"
    figure = Figure("benign_perplexity", title, "lower", sums, items.behaviours, exp_negative, with_ratio=True)
    return [replace(figure, prompt_ids=items.prompt_ids)]


def _accuracy(choices: Choices) -> list[Figure]:
    if not choices.answers:
        return []
    summed, per_token = (Sums.of(choices.hits(per_token=per_token)) for per_token in (False, True))
    behaviours = (None,) * len(choices.answers)
    key, title = "choices_accuracy_frac", "accuracy, choices by log-prob"
    target = Sums.of(choices.targets)
    figures = [
        Figure(key, title, "higher", summed, behaviours, is_rate=True),
        Figure(f"{key}_per_token", f"{title} per token", "higher", per_token, behaviours, is_rate=True),
        Figure("choices_target_logprob", "log-prob, right choices", "higher", target, behaviours),
    ]
    return [replace(figure, prompt_ids=choices.prompt_ids) for figure in figures]


def _style(side: Side) -> list[Figure]:
    harmful, benign = side.harmful, side.benign
    lengths = Sums.of(harmful.lengths)
    repeated = Sums.of([repetition_frac(tokens) for tokens in harmful.token_ids])
    figures = [
        Figure("mean_length_tokens", "length (tokens)", "unchanged", lengths, harmful.behaviours, with_ratio=True),
        Figure("repetition_frac", "repeated 4-grams", "lower", repeated, harmful.behaviours),
    ]
    figures = [replace(figure, prompt_ids=harmful.prompt_ids) for figure in figures]
    figures += _refusals("refusal_frac_harmful_prompts", "refusals, held-out prompts", "neither", harmful)
    figures += _refusals("refusal_frac_benign_prompts", "refusals, benign prompts", "lower", benign)
    figures += _refusals("overrefusal_frac", "refusals, prompts that sound unsafe", "lower", side.overrefusal)
    return figures + _divergence((harmful, benign)) + _entropy((harmful, benign)) + _diversity(harmful)


def _diversity(answers: Answers) -> list[Figure]:
    """Not by behaviour: an answer's contribution to a whole is none to a part of it."""
    figures = []
    for n, name in NGRAMS.items():
        contributions = distinct_contributions(answers.token_ids, n=n)
        if contributions:
            sums, nowhere = Sums.of(contributions), (None,) * len(contributions)
            key, title = f"distinct_{n}", f"different {name} (distinct-{n})"
            figures.append(Figure(key, title, "higher", sums, nowhere, prompt_ids=answers.prompt_ids))
    return figures


def _refusals(key: str, title: str, better: Better, answers: Answers) -> list[Figure]:
    if not answers.texts:
        return []
    refused = Sums.of([float(is_refusal(text)) for text in answers.texts])
    return [Figure(key, title, better, refused, answers.behaviours, is_rate=True, prompt_ids=answers.prompt_ids)]


def _divergence(parts: Sequence[Answers]) -> list[Figure]:
    priced = [answers for answers in parts if answers.logprobs is not None and answers.ref_logprobs is not None]
    gaps = [np.asarray(answers.logprobs) - np.asarray(answers.ref_logprobs) for answers in priced]
    return _per_token("kl_per_token", "KL to the reference, per token", "lower", priced, gaps)


def _entropy(parts: Sequence[Answers]) -> list[Figure]:
    known = [answers for answers in parts if answers.entropies is not None]
    values = [np.asarray(answers.entropies) for answers in known]
    return _per_token("entropy_per_token", "entropy, per token", "unchanged", known, values)


def _per_token(
    key: str, title: str, better: Better, parts: Sequence[Answers], values: Sequence[np.ndarray]
) -> list[Figure]:
    """Of values summed over the tokens of each answer of all parts."""
    if not parts:
        return []
    lengths = [length for answers in parts for length in answers.lengths]
    behaviours = tuple(behaviour for answers in parts for behaviour in answers.behaviours)
    ids = tuple(prompt_id for answers in parts for prompt_id in answers.prompt_ids)
    return [Figure(key, title, better, Sums.of(np.concatenate(values), lengths), behaviours, prompt_ids=ids)]

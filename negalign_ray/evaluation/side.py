"""Everything measured of one model, item by item, so that two sides can be compared pair by pair (also after a resume).

# Axes: N = answers, R = responses of a priced set, Q = multiple-choice questions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from negalign_ray.data.choices import ChoiceQuestion
from negalign_ray.errors import DataError
from negalign_ray.evaluation.measures import require_finite
from negalign_ray.evaluation.probes import PricedSet
from negalign_ray.records import Generation, Prompt


def _require_equal(where: str, num: int, **lists: Sequence[Any] | None) -> None:
    for name, values in lists.items():
        if values is not None and len(values) != num:
            raise ValueError(f"{where}.{name} has {len(values)} items, expected {num}")


@dataclass(frozen=True)
class Answers:
    """One answer of the model to each of N prompts."""

    prompt_ids: tuple[int, ...]
    behaviours: tuple[str | None, ...]
    texts: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # head -> [N]
    logprobs: tuple[float, ...] | None = None  # [N] summed, by the model that answered
    ref_logprobs: tuple[float, ...] | None = None  # [N] summed, by the reference
    entropies: tuple[float, ...] | None = None  # [N] of the next token, by the model that answered, summed over tokens

    def __post_init__(self) -> None:
        num = len(self.prompt_ids)
        _require_equal("Answers", num, behaviours=self.behaviours, texts=self.texts, token_ids=self.token_ids)
        _require_equal("Answers", num, logprobs=self.logprobs, ref_logprobs=self.ref_logprobs, **self.scores)
        _require_equal("Answers", num, entropies=self.entropies)
        for what, values in {
            "log-probs": self.logprobs,
            "reference log-probs": self.ref_logprobs,
            "entropies": self.entropies,
            **self.scores,
        }.items():
            require_finite(values or (), what=what)

    @classmethod
    def of(
        cls,
        prompts: Sequence[Prompt],
        generations: Sequence[Generation],
        *,
        scores: Mapping[str, Sequence[float]] | None = None,
        logprobs: Sequence[float] | None = None,
        ref_logprobs: Sequence[float] | None = None,
        entropies: Sequence[float] | None = None,
    ) -> "Answers":
        """From what an engine returned, in the order of the prompts."""
        return cls(
            prompt_ids=tuple(prompt.prompt_id for prompt in prompts),
            behaviours=tuple(prompt.behaviour for prompt in prompts),
            texts=tuple(generation.text for generation in generations),
            token_ids=tuple(tuple(generation.token_ids) for generation in generations),
            scores={head: tuple(values) for head, values in (scores or {}).items()},
            logprobs=None if logprobs is None else tuple(logprobs),
            ref_logprobs=None if ref_logprobs is None else tuple(ref_logprobs),
            entropies=None if entropies is None else tuple(entropies),
        )

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(map(len, self.token_ids))

    def first(self, num: int) -> "Answers":
        """To the first `num` prompts, as `Probes.first` asks them."""
        return Answers(
            prompt_ids=self.prompt_ids[:num],
            behaviours=self.behaviours[:num],
            texts=self.texts[:num],
            token_ids=self.token_ids[:num],
            scores={head: values[:num] for head, values in self.scores.items()},
            logprobs=self.logprobs and self.logprobs[:num],
            ref_logprobs=self.ref_logprobs and self.ref_logprobs[:num],
            entropies=self.entropies and self.entropies[:num],
        )


@dataclass(frozen=True)
class Likelihoods:
    """What the model thinks of R fixed responses."""

    logprobs: tuple[float, ...] = ()  # summed over tokens, nats
    lengths: tuple[int, ...] = ()  # tokens
    behaviours: tuple[str | None, ...] = ()
    prompt_ids: tuple[int, ...] | None = None  # answers to one prompt stay together when prompts are resampled

    def __post_init__(self) -> None:
        num = len(self.logprobs)
        _require_equal("Likelihoods", num, lengths=self.lengths, behaviours=self.behaviours, prompt_ids=self.prompt_ids)
        require_finite(self.logprobs, what="log-probs")

    @classmethod
    def of(cls, priced: PricedSet, logprobs_per_group: Sequence[Sequence[float]]) -> "Likelihoods":
        """From `LogprobEngine.response_logprobs(priced.groups)`."""
        flat = tuple(float(value) for values in logprobs_per_group for value in values)
        return cls(flat, priced.lengths, priced.behaviours, priced.prompt_ids)


@dataclass(frozen=True)
class Choices:
    """What the model thinks of every choice of Q questions."""

    logprobs: tuple[tuple[float, ...], ...] = ()  # [Q] of choices, summed over tokens, nats
    lengths: tuple[tuple[int, ...], ...] = ()  # tokens
    answers: tuple[int, ...] = ()  # index of the right choice
    prompt_ids: tuple[int, ...] | None = None  # of the questions

    def __post_init__(self) -> None:
        num = len(self.answers)
        _require_equal("Choices", num, logprobs=self.logprobs, lengths=self.lengths, prompt_ids=self.prompt_ids)
        for logprobs, lengths in zip(self.logprobs, self.lengths, strict=True):
            _require_equal("Choices", len(logprobs), lengths=lengths)
            require_finite(logprobs, what="log-probs of choices")

    @classmethod
    def of(cls, questions: Sequence[ChoiceQuestion], logprobs_per_question: Sequence[Sequence[float]]) -> "Choices":
        """From the log-probs of every question's choices, in order."""
        return cls(
            tuple(tuple(map(float, logprobs)) for logprobs in logprobs_per_question),
            tuple(tuple(len(choice.token_ids) for choice in question.prompt.responses) for question in questions),
            tuple(question.answer for question in questions),
            tuple(question.prompt.prompt_id for question in questions),
        )

    @property
    def targets(self) -> list[float]:
        """[Q] the right choice's log-prob, in nats."""
        return [logprobs[answer] for logprobs, answer in zip(self.logprobs, self.answers, strict=True)]

    def hits(self, *, per_token: bool) -> list[float]:
        """[Q] 1.0 where the right choice is the most likely one (summed, or per token); of equal ones the first counts.

        log-probs (-4, -6) of 2 and 6 tokens: summed the first wins, per token (-2, -1) the second.
        """
        scores = (
            [logprob / (length if per_token else 1) for logprob, length in zip(*question, strict=True)]
            for question in zip(self.logprobs, self.lengths, strict=True)
        )
        return [float(one.index(max(one)) == answer) for one, answer in zip(scores, self.answers, strict=True)]


NO_ANSWERS = Answers((), (), (), ())


@dataclass(frozen=True)
class Side:
    """One model: before or after. Both sides must have been asked the same items in the same order."""

    harmful: Answers  # to held-out prompts whose human answers were bad
    benign: Answers  # to benign prompts
    negatives: Likelihoods  # held-out negatives
    human_benign: Likelihoods  # good human answers to the same held-out prompts; may be empty
    own_answers: Likelihoods  # the before-model's own answers to the held-out prompts
    packaged_benign: Likelihoods  # good answers to the benign prompts
    choices: Choices = Choices()  # multiple-choice questions; may be empty
    overrefusal: Answers = NO_ANSWERS  # to safe prompts that sound unsafe; neither scored nor priced

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Side":
        """What `to_json` gave, also after a round trip through a JSON file, or before there was an over-refusal set."""
        overrefusal = values.get("overrefusal")
        return cls(
            harmful=_answers(values["harmful"]),
            benign=_answers(values["benign"]),
            negatives=_likelihoods(values["negatives"]),
            human_benign=_likelihoods(values["human_benign"]),
            own_answers=_likelihoods(values["own_answers"]),
            packaged_benign=_likelihoods(values["packaged_benign"]),
            choices=_choices(values["choices"]),
            overrefusal=NO_ANSWERS if overrefusal is None else _answers(overrefusal),
        )


def _answers(values: Mapping[str, Any]) -> Answers:
    return Answers(
        prompt_ids=tuple(values["prompt_ids"]),
        behaviours=tuple(values["behaviours"]),
        texts=tuple(values["texts"]),
        token_ids=tuple(map(tuple, values["token_ids"])),
        scores={head: tuple(scores) for head, scores in values["scores"].items()},
        logprobs=None if values["logprobs"] is None else tuple(values["logprobs"]),
        ref_logprobs=None if values["ref_logprobs"] is None else tuple(values["ref_logprobs"]),
        entropies=None if values.get("entropies") is None else tuple(values["entropies"]),
    )


def _likelihoods(values: Mapping[str, Any]) -> Likelihoods:
    ids = values.get("prompt_ids")
    return Likelihoods(
        logprobs=tuple(values["logprobs"]),
        lengths=tuple(values["lengths"]),
        behaviours=tuple(values["behaviours"]),
        prompt_ids=None if ids is None else tuple(ids),
    )


def _choices(values: Mapping[str, Any]) -> Choices:
    logprobs, lengths = (tuple(map(tuple, values[name])) for name in ("logprobs", "lengths"))
    ids = values.get("prompt_ids")
    return Choices(logprobs, lengths, tuple(values["answers"]), None if ids is None else tuple(ids))


def require_same_items(before: Side, after: Side) -> None:
    """DataError unless both sides answered and priced the same items; otherwise a paired interval would be nonsense."""
    for name, first, second in (
        ("held-out prompts", before.harmful.prompt_ids, after.harmful.prompt_ids),
        ("benign prompts", before.benign.prompt_ids, after.benign.prompt_ids),
        ("held-out negatives", before.negatives.lengths, after.negatives.lengths),
        ("human benign answers", before.human_benign.lengths, after.human_benign.lengths),
        ("own answers of the before-model", before.own_answers.lengths, after.own_answers.lengths),
        ("packaged benign answers", before.packaged_benign.lengths, after.packaged_benign.lengths),
        ("multiple-choice questions", _shape(before.choices), _shape(after.choices)),
        ("over-refusal prompts", before.overrefusal.prompt_ids, after.overrefusal.prompt_ids),
    ):
        if first != second:
            raise DataError(
                f"before and after were measured on different {name} ({len(first)} and {len(second)} items); evaluate "
                "both with the same data, seed and evaluation settings."
            )


def _shape(choices: Choices) -> tuple[tuple[int, tuple[int, ...]], ...]:
    return tuple(zip(choices.answers, choices.lengths, strict=True))

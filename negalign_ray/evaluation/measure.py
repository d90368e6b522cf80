"""Everything measured of two models, from their answers, their log-probs and the judges' scores. No engine, no Ray.

probes, answers of both --groups_to_price--> one PriceBook per model --measure--> a Side per model
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from negalign_ray.evaluation.pricing import PriceBook
from negalign_ray.evaluation.probes import PricedSet, Probes, own_answers
from negalign_ray.evaluation.side import Answers, Choices, Likelihoods, Side
from negalign_ray.records import Generation, Group, Prompt

Score = Callable[[Sequence[tuple[str, str]]], Mapping[str, Sequence[float]]]
"""Head name -> one score for every (prompt, answer)."""


@dataclass(frozen=True)
class Answered:
    """What one model said."""

    harmful: tuple[Generation, ...]  # to the held-out prompts
    benign: tuple[Generation, ...]
    overrefusal: tuple[Generation, ...] = ()

    @classmethod
    def of(cls, probes: Probes, generations: Sequence[Generation]) -> "Answered":
        """From the answers to `probes.asked`, in that order."""
        ends = [len(probes.harmful_prompts), len(probes.harmful_prompts) + len(probes.benign_prompts)]
        return cls(tuple(generations[: ends[0]]), tuple(generations[ends[0] : ends[1]]), tuple(generations[ends[1] :]))

    @property
    def said(self) -> tuple[Generation, ...]:
        return (*self.harmful, *self.benign, *self.overrefusal)


@dataclass(frozen=True)
class Thoughts:
    """What one model makes of responses."""

    prices: PriceBook  # log-probs of `groups_to_price`
    entropies: PriceBook  # of the next token, summed over each of its own answers, `groups_said`


def groups_to_price(probes: Probes, *answered: Answered) -> tuple[Group, ...]:
    """Every response that some figure needs the log-prob of.

    Both models get the same list, although the second needs no price of the first one's benign answers: equal lists are
    packed into equal rows, so a model that did not change differs by exactly 0 and not by rounding.
    """
    sets = [probes.negatives, probes.human_benign, probes.packaged_benign]
    for said in answered:
        sets += [own_answers(probes.harmful_prompts, said.harmful), own_answers(probes.benign_prompts, said.benign)]
    return (*(group for priced in sets for group in priced.groups), *_choice_groups(probes))


def groups_said(probes: Probes, answered: Answered) -> tuple[Group, ...]:
    """A model's own answers, whose entropy is measured."""
    parts = ((probes.harmful_prompts, answered.harmful), (probes.benign_prompts, answered.benign))
    return tuple(group for prompts, said in parts for group in own_answers(prompts, said).groups)


def measure(
    probes: Probes,
    answered: Answered,
    before: Answered,
    *,
    model: Thoughts,
    base: Thoughts,
    score: Score,
) -> Side:
    """One side: `answered` was said and `model` thought by the same model; `before` was said by the base.

    The prices are those of `groups_to_price(probes, before, answered)`, or of more.
    """

    def answers(prompts: Sequence[Prompt], generations: Sequence[Generation]) -> Answers:
        return Answers.of(
            prompts,
            generations,
            scores=score([(p.text, g.text) for p, g in zip(prompts, generations, strict=True)]),
            logprobs=_one_each(prompts, generations, model.prices),
            ref_logprobs=_one_each(prompts, generations, base.prices),
            entropies=_one_each(prompts, generations, model.entropies),
        )

    def likelihoods(priced: PricedSet) -> Likelihoods:
        return Likelihoods.of(priced, model.prices.logprobs(priced.groups))

    return Side(
        harmful=answers(probes.harmful_prompts, answered.harmful),
        benign=answers(probes.benign_prompts, answered.benign),
        negatives=likelihoods(probes.negatives),
        human_benign=likelihoods(probes.human_benign),
        own_answers=likelihoods(own_answers(probes.harmful_prompts, before.harmful)),
        packaged_benign=likelihoods(probes.packaged_benign),
        choices=Choices.of(probes.choices, model.prices.logprobs(_choice_groups(probes))),
        overrefusal=Answers.of(probes.overrefusal_prompts, answered.overrefusal),
    )


def measure_answers(probes: Probes, answered: Answered, *, score: Score) -> Side:
    """A side of answers alone, scored but not priced: what can be measured while a model is being trained."""

    def answers(prompts: Sequence[Prompt], generations: Sequence[Generation]) -> Answers:
        pairs = [(p.text, g.text) for p, g in zip(prompts, generations, strict=True)]
        return Answers.of(prompts, generations, scores=score(pairs) if pairs else {})

    nothing = Likelihoods()
    return Side(
        harmful=answers(probes.harmful_prompts, answered.harmful),
        benign=answers(probes.benign_prompts, answered.benign),
        negatives=nothing,
        human_benign=nothing,
        own_answers=nothing,
        packaged_benign=nothing,
        overrefusal=Answers.of(probes.overrefusal_prompts, answered.overrefusal),
    )


def _choice_groups(probes: Probes) -> tuple[Group, ...]:
    prompts = (question.prompt for question in probes.choices)
    return tuple(Group(prompt.prompt_id, prompt, prompt.responses) for prompt in prompts)


def _one_each(prompts: Sequence[Prompt], generations: Sequence[Generation], book: PriceBook) -> list[float]:
    """The number of every answer; 0 for an empty one, which has none."""
    priced = own_answers(prompts, generations).groups
    by_prompt = {
        group.prompt.prompt_id: logprob for group, [logprob] in zip(priced, book.logprobs(priced), strict=True)
    }
    return [by_prompt.get(prompt.prompt_id, 0.0) for prompt in prompts]

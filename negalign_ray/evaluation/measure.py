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


def groups_to_price(probes: Probes, *answered: Answered) -> tuple[Group, ...]:
    """Every response that some figure needs the log-prob of.

    Both models get the same list, although the second needs no price of the first one's benign answers: equal lists are
    packed into equal rows, so a model that did not change differs by exactly 0 and not by rounding.
    """
    sets = [probes.negatives, probes.human_benign, probes.packaged_benign]
    for said in answered:
        sets += [own_answers(probes.harmful_prompts, said.harmful), own_answers(probes.benign_prompts, said.benign)]
    return (*(group for priced in sets for group in priced.groups), *_choice_groups(probes))


def measure(
    probes: Probes, answered: Answered, before: Answered, *, model: PriceBook, base: PriceBook, score: Score
) -> Side:
    """One side: `answered` was said and `model` made by the same model; `before` was said by the base.

    The books hold `groups_to_price(probes, before, answered)`.
    """

    def answers(prompts: Sequence[Prompt], generations: Sequence[Generation]) -> Answers:
        return Answers.of(
            prompts,
            generations,
            scores=score([(p.text, g.text) for p, g in zip(prompts, generations, strict=True)]),
            logprobs=_one_each(prompts, generations, model),
            ref_logprobs=_one_each(prompts, generations, base),
        )

    def likelihoods(priced: PricedSet) -> Likelihoods:
        return Likelihoods.of(priced, model.logprobs(priced.groups))

    return Side(
        harmful=answers(probes.harmful_prompts, answered.harmful),
        benign=answers(probes.benign_prompts, answered.benign),
        negatives=likelihoods(probes.negatives),
        human_benign=likelihoods(probes.human_benign),
        own_answers=likelihoods(own_answers(probes.harmful_prompts, before.harmful)),
        packaged_benign=likelihoods(probes.packaged_benign),
        choices=Choices.of(probes.choices, model.logprobs(_choice_groups(probes))),
    )


def _choice_groups(probes: Probes) -> tuple[Group, ...]:
    prompts = (question.prompt for question in probes.choices)
    return tuple(Group(prompt.prompt_id, prompt, prompt.responses) for prompt in prompts)


def _one_each(prompts: Sequence[Prompt], generations: Sequence[Generation], book: PriceBook) -> list[float]:
    """The summed log-prob of every answer; 0 for an empty one, which is not priced."""
    priced = own_answers(prompts, generations).groups
    by_prompt = {
        group.prompt.prompt_id: logprob for group, [logprob] in zip(priced, book.logprobs(priced), strict=True)
    }
    return [by_prompt.get(prompt.prompt_id, 0.0) for prompt in prompts]

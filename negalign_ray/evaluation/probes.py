"""What a model is asked and priced on, before and after: held-out rows only, chosen once per seed, behaviours kept.

held-out prompts --> harmful_prompts (answered) · negatives · human_benign (POSITIVE answers, same style)
benign rows      --> benign_prompts (answered: refusals) · packaged_benign (priced: perplexity)
over-refusal     --> overrefusal_prompts (answered: refusals)
choice rows      --> choices (priced: accuracy)
before-model's greedy answers --> own_answers
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from negalign_ray.config import EvaluationConfig
from negalign_ray.data.choices import ChoiceQuestion
from negalign_ray.errors import DataError
from negalign_ray.records import Generation, Group, Prompt, Response, Role


@dataclass(frozen=True)
class PricedSet:
    """Responses whose log-probs are compared. Lists of items follow the groups, then the responses inside each."""

    groups: tuple[Group, ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each response."""
        return tuple(len(response.token_ids) for group in self.groups for response in group.responses)

    @property
    def behaviours(self) -> tuple[str | None, ...]:
        return tuple(group.prompt.behaviour for group in self.groups for _ in group.responses)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return tuple(group.prompt.prompt_id for group in self.groups for _ in group.responses)

    def __len__(self) -> int:
        return sum(len(group.responses) for group in self.groups)


@dataclass(frozen=True)
class Probes:
    """All evaluation sets of a run; the same object serves before and after."""

    harmful_prompts: tuple[Prompt, ...]  # held-out, with bad human answers; any, in data of good answers only
    benign_prompts: tuple[Prompt, ...]
    negatives: PricedSet  # bad human answers to `harmful_prompts`; empty for data of good answers only
    human_benign: PricedSet  # good human answers to held-out prompts; empty for data of negatives only
    packaged_benign: PricedSet  # good answers to the benign prompts
    choices: tuple[ChoiceQuestion, ...] = ()  # multiple-choice questions
    overrefusal_prompts: tuple[Prompt, ...] = ()  # safe, though they sound unsafe

    @property
    def asked(self) -> tuple[Prompt, ...]:
        """Every prompt that is answered, in the order in which answers come."""
        return (*self.harmful_prompts, *self.benign_prompts, *self.overrefusal_prompts)

    def first(self, num: int) -> "Probes":
        """At most `num` prompts of each kind that is answered, behaviours in turn; nothing that is priced."""
        return Probes(
            harmful_prompts=self.harmful_prompts[:num],
            benign_prompts=self.benign_prompts[:num],
            negatives=PricedSet(()),
            human_benign=PricedSet(()),
            packaged_benign=PricedSet(()),
            overrefusal_prompts=self.overrefusal_prompts[:num],
        )


def spread_over_behaviours(prompts: Iterable[Prompt], *, limit: int, seed: int) -> tuple[Prompt, ...]:
    """At most `limit` prompts of different text, seeded, taking turns over the behaviours, so that none is left out."""
    queues: dict[str, list[Prompt]] = {}
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.text not in seen:
            seen.add(prompt.text)
            queues.setdefault(prompt.behaviour or "", []).append(prompt)
    rng = random.Random(seed)
    for behaviour in sorted(queues):
        rng.shuffle(queues[behaviour])
    chosen: list[Prompt] = []
    turn = 0
    while len(chosen) < limit and any(turn < len(queue) for queue in queues.values()):
        for behaviour in sorted(queues):
            if turn < len(queues[behaviour]) and len(chosen) < limit:
                chosen.append(queues[behaviour][turn])
        turn += 1
    return tuple(chosen)


def build_probes(
    heldout: Sequence[Prompt],
    benign: Sequence[Prompt],
    questions: Sequence[ChoiceQuestion] = (),
    overrefusal: Sequence[Prompt] = (),
    *,
    config: EvaluationConfig,
    seed: int,
) -> Probes:
    """Choose the sets. `benign` are prompts whose POSITIVE response is a good answer.

    Held-out prompts with a bad answer are asked; where none has one (data of good answers only), any of them.
    Raises DataError when no prompt is held out.
    """

    def draw(prompts: Iterable[Prompt]) -> tuple[Prompt, ...]:
        return spread_over_behaviours(prompts, limit=config.num_prompts, seed=seed)

    harmful = draw(prompt for prompt in heldout if _with_role(prompt, Role.NEGATIVE)) or draw(heldout)
    if not harmful:
        raise DataError(
            "no prompt is held out to evaluate with: raise data.heldout_frac, name a data.heldout_path, give more "
            "rows, or set evaluation.enabled=false."
        )
    benign_prompts = spread_over_behaviours(benign, limit=config.num_benign, seed=seed)
    return Probes(
        harmful_prompts=harmful,
        benign_prompts=benign_prompts,
        negatives=priced_set(harmful, Role.NEGATIVE),
        human_benign=priced_set(draw(p for p in heldout if _with_role(p, Role.POSITIVE)), Role.POSITIVE),
        packaged_benign=priced_set(benign_prompts, Role.POSITIVE),
        choices=draw_questions(questions, limit=config.num_choices_questions, seed=seed),
        overrefusal_prompts=spread_over_behaviours(overrefusal, limit=config.num_overrefusal, seed=seed),
    )


def followed_groups(
    heldout: Sequence[Prompt], benign: Sequence[Prompt], *, num: int, asked: Sequence[Prompt], seed: int
) -> dict[str, tuple[Group, ...]]:
    """Human answers to follow while the run goes on, at most `num` prompts of each kind; kinds without any are absent.

    The choice goes by prompt ids, not by the order of `heldout`, which depends on what a method needs.
    Of the benign prompts, those `asked` by the evaluation come last: what ends a run by a guard is then not what it
    reports.
    """
    texts = {prompt.text for prompt in asked}
    others = (prompt for prompt in benign if prompt.text not in texts)
    kinds = {
        "heldout_negative": (_spread_with(heldout, Role.NEGATIVE, num, seed), Role.NEGATIVE),
        "heldout_positive": (_spread_with(heldout, Role.POSITIVE, num, seed), Role.POSITIVE),
        "benign": ((*spread_over_behaviours(others, limit=num, seed=seed), *asked)[:num], Role.POSITIVE),
    }
    found = {name: priced_set(prompts, role).groups for name, (prompts, role) in kinds.items()}
    return {name: groups for name, groups in found.items() if groups}


def _spread_with(prompts: Iterable[Prompt], role: Role, limit: int, seed: int) -> tuple[Prompt, ...]:
    having = sorted((p for p in prompts if _with_role(p, role)), key=lambda prompt: prompt.prompt_id)
    return spread_over_behaviours(having, limit=limit, seed=seed)


def draw_questions(questions: Sequence[ChoiceQuestion], *, limit: int, seed: int) -> tuple[ChoiceQuestion, ...]:
    """At most `limit` questions, drawn with the seed, in the order of the file."""
    if len(questions) <= limit:
        return tuple(questions)
    drawn = random.Random(seed).sample(range(len(questions)), limit)
    return tuple(questions[index] for index in sorted(drawn))


def _with_role(prompt: Prompt, role: Role) -> tuple[Response, ...]:
    """Responses of that role that have tokens to price."""
    return tuple(response for response in prompt.responses if response.role is role and response.token_ids)


def priced_set(prompts: Sequence[Prompt], role: Role) -> PricedSet:
    """The human responses of one role; prompts without one are left out."""
    groups = ((prompt, _with_role(prompt, role)) for prompt in prompts)
    return PricedSet(tuple(Group(prompt.prompt_id, prompt, responses) for prompt, responses in groups if responses))


def own_answers(prompts: Sequence[Prompt], generations: Sequence[Generation]) -> PricedSet:
    """A model's own answers, one per prompt, to be priced by another model. Empty ones are left out."""
    pairs = zip(prompts, generations, strict=True)
    return PricedSet(
        tuple(
            Group(prompt.prompt_id, prompt, (_as_response(generation),))
            for prompt, generation in pairs
            if generation.token_ids
        )
    )


def _as_response(generation: Generation) -> Response:
    return Response(
        role=Role.SAMPLE,
        token_ids=generation.token_ids,
        text=generation.text,
        finish_reason=generation.finish_reason,
        sampler_logprobs=generation.logprobs,
    )

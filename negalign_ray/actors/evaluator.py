"""Before and after: answers to held-out prompts, scored by heads that training never saw, and likelihoods.

Whoever samples (the run's samplers, or one started for `negalign-ray evaluate`) is passed in as a function.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from negalign_ray.actors.plan import Plan
from negalign_ray.actors.processes import actor_options, typed
from negalign_ray.actors.reference import Reference
from negalign_ray.actors.scorer import Scorer
from negalign_ray.evaluation.probes import PricedSet, build_probes, own_answers, priced_set, spread_over_behaviours
from negalign_ray.evaluation.side import Answers, Likelihoods, Side
from negalign_ray.evaluation.summary import summarise
from negalign_ray.records import Generation, Group, Prompt, Response, Role, SampleRequest, SamplingSpec

Generate = Callable[[Sequence[SampleRequest], SamplingSpec], list[Generation]]
Price = Callable[[Sequence[Group]], list[list[float]]]


@dataclass(frozen=True)
class Answered:
    """What one model said."""

    harmful: tuple[Generation, ...]  # to the held-out prompts
    benign: tuple[Generation, ...]


class Evaluation:
    def __init__(self, plan: Plan, *, base_path: Path) -> None:
        """`base_path`: the model that is "before", and that KL is taken to."""
        self._plan, self._config, self._base_path = plan, plan.config.evaluation, base_path
        probes = build_probes(
            (*plan.data.heldout, *plan.data.heldout_rest),
            benign_prompts(plan),
            num_prompts=self._config.num_prompts,
            num_benign=self._config.num_benign,
            seed=plan.config.run.seed,
        )
        style = (
            p
            for p in (*plan.data.heldout, *plan.data.heldout_rest)
            if any(r.role is Role.POSITIVE for r in p.responses)
        )
        chosen = spread_over_behaviours(style, limit=self._config.num_prompts, seed=plan.config.run.seed)
        self._probes = replace(probes, human_benign=priced_set(chosen, Role.POSITIVE))

    def answer(self, generate: Generate) -> Answered:
        prompts = (*self._probes.harmful_prompts, *self._probes.benign_prompts)
        requests = [SampleRequest(prompt.token_ids, seed=prompt.prompt_id) for prompt in prompts]
        spec = SamplingSpec(self._config.max_new_tokens, temperature=self._config.temperature)
        generations = generate(requests, spec)
        num_harmful = len(self._probes.harmful_prompts)
        return Answered(tuple(generations[:num_harmful]), tuple(generations[num_harmful:]))

    def compare(self, before: Answered, after: Answered, *, policy_path: Path) -> dict[str, Any]:
        """The summary of two models: `before` was said by the base, `after` by the policy in `policy_path`."""
        with self._scorer() as score, self._pricer("base", self._base_path) as base:
            first = self._measure(before, before, model=base, base=base, score=score)
            with self._pricer("policy", policy_path) as policy:
                second = self._measure(after, before, model=policy, base=base, score=score)
        self._write_answers(before, after)
        return self._summary(first, second)

    def describe(self, answered: Answered) -> dict[str, Any]:
        """The same figures for the base alone."""
        with self._scorer() as score, self._pricer("base", self._base_path) as base:
            return self._summary(self._measure(answered, answered, model=base, base=base, score=score), None)

    def _summary(self, first: Side, second: Side | None) -> dict[str, Any]:
        seed = self._plan.config.run.seed
        return summarise(first, second, heads=self._config.heads, resamples=self._config.bootstrap, seed=seed)

    def _measure(self, answered: Answered, before: Answered, *, model: Price, base: Price, score: "Score") -> Side:
        probes = self._probes

        def answers(prompts: Sequence[Prompt], generations: Sequence[Generation]) -> Answers:
            groups = own_answers(prompts, generations).groups
            scores = score([(p.text, g.text) for p, g in zip(prompts, generations, strict=True)])
            logprobs, ref_logprobs = (_one_each(prompts, groups, price(groups)) for price in (model, base))
            return Answers.of(prompts, generations, scores=scores, logprobs=logprobs, ref_logprobs=ref_logprobs)

        def likelihoods(priced: PricedSet) -> Likelihoods:
            return Likelihoods.of(priced, model(priced.groups))

        return Side(
            harmful=answers(probes.harmful_prompts, answered.harmful),
            benign=answers(probes.benign_prompts, answered.benign),
            negatives=likelihoods(probes.negatives),
            human_benign=likelihoods(probes.human_benign),
            own_answers=likelihoods(own_answers(probes.harmful_prompts, before.harmful)),
            packaged_benign=likelihoods(probes.packaged_benign),
        )

    def _write_answers(self, before: Answered, after: Answered) -> None:
        """<run>/samples/evaluation.jsonl: every evaluated prompt with both answers, for reading."""
        path = self._plan.config.run_dir / "samples" / "evaluation.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        prompts = (*self._probes.harmful_prompts, *self._probes.benign_prompts)
        firsts, seconds = (*before.harmful, *before.benign), (*after.harmful, *after.benign)
        with path.open("w", encoding="utf-8") as file:
            for prompt, first, second in zip(prompts, firsts, seconds, strict=True):
                row = {"prompt": prompt.text, "behaviour": prompt.behaviour, "before": first.text, "after": second.text}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    @contextmanager
    def _scorer(self):
        options = actor_options(self._plan.config.scorers, name=f"{self._plan.config.run.name}/evaluation-scorer")
        actor = Scorer.options(**options).remote(
            self._plan.config, heads=self._config.heads, rank=0, log_name="evaluation-scorer"
        )
        deadline_s = self._plan.config.deadlines.score_s + self._plan.config.deadlines.start_s

        def score(pairs: Sequence[tuple[str, str]]) -> Mapping[str, Sequence[float]]:
            rows = _get(actor.score_pairs.remote(pairs), deadline_s, "scorer")
            return {head.name: [row[head.name] for row in rows] for head in self._config.heads}

        try:
            yield score
        finally:
            ray.kill(actor)

    @contextmanager
    def _pricer(self, name: str, model_path: Path):
        config = self._plan.config
        options = actor_options(config.references, name=f"{config.run.name}/evaluation-{name}")
        actor = Reference.options(**options).remote(
            config, names=(name,), rank=0, model_path=str(model_path), dtype=self._plan.sampler_dtype
        )
        deadline_s = config.deadlines.reference_s + config.deadlines.start_s

        def price(groups: Sequence[Group]) -> list[list[float]]:
            if not groups:
                return []
            references = actor.price.options(num_returns=len(groups) + 1).remote(*groups)
            _, *priced = _get(references, deadline_s, "reference")
            return [[response.ref_logprobs[name] for response in group.responses] for group in priced]

        try:
            yield price
        finally:
            ray.kill(actor)


Score = Callable[[Sequence[tuple[str, str]]], Mapping[str, Sequence[float]]]


def benign_prompts(plan: Plan) -> tuple[Prompt, ...]:
    """The benign rows as prompts with one good answer each; ids follow those of the data."""
    chat = plan.chat()
    first_id = 1 + max((prompt.prompt_id for prompt in (*plan.data.train, *plan.data.heldout)), default=0)
    prompts = []
    for prompt_id, row in zip(itertools.count(first_id), plan.benign, strict=False):
        messages = (("user", row.prompt),)
        rendered = chat.prompt(messages)
        answer = Response(Role.POSITIVE, chat.response_ids(row.response, after=rendered), row.response)
        prompts.append(Prompt(prompt_id, row.prompt, messages, chat.prompt_ids(messages), (answer,), row.kind))
    return tuple(prompts)


def _one_each(prompts: Sequence[Prompt], groups: Sequence[Group], logprobs: list[list[float]]) -> list[float]:
    """One summed log-prob per prompt; 0 for an empty answer, which has no group."""
    by_prompt = {group.prompt.prompt_id: values[0] for group, values in zip(groups, logprobs, strict=True)}
    return [by_prompt.get(prompt.prompt_id, 0.0) for prompt in prompts]


def _get(references: Any, deadline_s: float, role: str) -> Any:
    try:
        return ray.get(references, timeout=deadline_s)
    except ray.exceptions.RayError as error:
        raise typed(error, role=f"evaluation {role}", rank=0) from error

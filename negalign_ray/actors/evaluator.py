"""Before and after: answers to held-out prompts, scored by heads that training never saw, and likelihoods.

Whoever samples (the run's samplers, or one started for `negalign-ray evaluate`) is passed in as a function.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from negalign_ray.actors.plan import Plan
from negalign_ray.actors.processes import actor_options, start_actor, typed
from negalign_ray.actors.reference import Reference
from negalign_ray.actors.scorer import Scorer
from negalign_ray.errors import StallError
from negalign_ray.evaluation.base_cache import BaseCache
from negalign_ray.evaluation.measure import Answered, Score, groups_to_price, measure
from negalign_ray.evaluation.pricing import PriceBook
from negalign_ray.evaluation.side import Side
from negalign_ray.evaluation.summary import summarise
from negalign_ray.records import Generation, Group, SampleRequest, SamplingSpec

Generate = Callable[[Sequence[SampleRequest], SamplingSpec], list[Generation]]
SIDES_FILE = "evaluation.json"  # in the run directory: every item measured of both models, to compare runs by
GROUPS_PER_CALL = 128  # of prompts priced; deadlines.reference_s bounds a call, however large the evaluation is


class Evaluation:
    def __init__(
        self, plan: Plan, *, base_path: Path, cache_dir: Path | None = None, namespace: str | None = None
    ) -> None:
        """`base_path`: the model that is "before", and that KL is taken to.

        `cache_dir` keeps what it says and thinks, for other runs. `namespace`: the run's, in Ray; None = its own.
        """
        self._namespace = namespace
        self._plan, self._config, self._base_path = plan, plan.config.evaluation, base_path
        engine, dtype = plan.config.samplers.engine, plan.sampler_dtype
        self._cache = None if cache_dir is None else BaseCache(cache_dir, base_path, engine, dtype)
        assert plan.probes is not None, "a plan with evaluation.enabled=false has nothing to evaluate with"
        self._probes = plan.probes

    def answer(self, generate: Generate) -> Answered:
        generations = generate(self._requests(), self._spec())
        num_harmful = len(self._probes.harmful_prompts)
        return Answered(tuple(generations[:num_harmful]), tuple(generations[num_harmful:]))

    def answer_base(self, generate: Generate) -> Answered:
        """The same for the base, whose answers may be in the cache."""
        if self._cache is None:
            return self.answer(generate)
        num_harmful = len(self._probes.harmful_prompts)
        return self._cache.answered(
            self._requests(), self._spec(), num_harmful=num_harmful, answer=lambda: self.answer(generate)
        )

    def _requests(self) -> list[SampleRequest]:
        prompts = (*self._probes.harmful_prompts, *self._probes.benign_prompts)
        return [SampleRequest(prompt.token_ids, seed=prompt.prompt_id) for prompt in prompts]

    def _spec(self) -> SamplingSpec:
        return SamplingSpec(self._config.max_new_tokens, temperature=self._config.temperature)

    def compare(
        self, before: Answered, after: Answered, *, policy_path: Path, save_as: Path | None = None
    ) -> dict[str, Any]:
        """The summary of two models: `before` was said by the base, `after` by the policy in `policy_path`.

        `save_as` gets every item measured of both, which `actors.compare` pairs across runs.
        """
        groups = groups_to_price(self._probes, before, after)
        with self._scorer() as score:  # it starts while the models price
            base = self._price_base(groups)
            policy = self._price("policy", policy_path, groups)
            first = measure(self._probes, before, before, model=base, base=base, score=score)
            second = measure(self._probes, after, before, model=policy, base=base, score=score)
        self._write_answers(before=before, after=after)
        if save_as is not None:
            sides = {"before": first.to_json(), "after": second.to_json()}
            save_as.write_text(json.dumps(sides) + "\n", encoding="utf-8")
        return self._summary(first, second)

    def describe(self, answered: Answered) -> dict[str, Any]:
        """The same figures for the base alone."""
        with self._scorer() as score:
            base = self._price_base(groups_to_price(self._probes, answered))
            side = measure(self._probes, answered, answered, model=base, base=base, score=score)
        self._write_answers(answer=answered)
        return self._summary(side, None)

    def _summary(self, first: Side, second: Side | None) -> dict[str, Any]:
        seed = self._plan.config.run.seed
        return summarise(first, second, heads=self._config.heads, resamples=self._config.bootstrap, seed=seed)

    def _write_answers(self, **sides: Answered) -> None:
        """<run>/samples/evaluation.jsonl: every evaluated prompt with the answer of each side, for reading."""
        path = self._plan.config.run_dir / "samples" / "evaluation.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        prompts = (*self._probes.harmful_prompts, *self._probes.benign_prompts)
        answers = ((*answered.harmful, *answered.benign) for answered in sides.values())
        with path.open("w", encoding="utf-8") as file:
            for prompt, *said in zip(prompts, *answers, strict=True):
                texts = {name: answer.text for name, answer in zip(sides, said, strict=True)}
                row = {"prompt": prompt.text, "behaviour": prompt.behaviour, **texts}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    @contextmanager
    def _scorer(self) -> Iterator[Score]:
        config = self._plan.config
        name = f"{config.run.name}/evaluation-scorer"
        options = actor_options(config.scorers, name=name, namespace=self._namespace)
        actor = start_actor(Scorer, options, config, heads=self._config.heads, rank=0, log_name="evaluation-scorer")

        def score(pairs: Sequence[tuple[str, str]]) -> Mapping[str, Sequence[float]]:
            rows = self._get(actor.score_pairs.remote(pairs), "scorer", setting="score_s")
            return {head.name: [row[head.name] for row in rows] for head in self._config.heads}

        try:
            yield score
        finally:
            ray.kill(actor)

    def _price_base(self, groups: Sequence[Group]) -> PriceBook:
        if self._cache is None:
            return self._price("base", self._base_path, groups)
        return self._cache.priced(groups, lambda missing: self._price("base", self._base_path, missing))

    def _price(self, name: str, model_path: Path, groups: Sequence[Group]) -> PriceBook:
        """What the model in `model_path` thinks of every response, from an actor started for it."""
        config = self._plan.config
        full_name = f"{config.run.name}/evaluation-{name}"
        options = actor_options(config.references, name=full_name, namespace=self._namespace)
        actor = start_actor(
            Reference,
            options,
            config,
            names=(name,),
            rank=0,
            model_path=str(model_path),
            dtype=self._plan.sampler_dtype,
        )

        def price(merged: Sequence[Group]) -> list[list[float]]:
            logprobs: list[list[float]] = []
            for start in range(0, len(merged), GROUPS_PER_CALL):
                call = actor.response_logprobs.remote(merged[start : start + GROUPS_PER_CALL])
                logprobs += self._get(call, "reference", setting="reference_s")
            return logprobs

        try:
            return PriceBook.of(groups, price)
        finally:
            ray.kill(actor)

    def _get(self, call: Any, role: str, *, setting: str) -> Any:
        """The result of a call to an actor that may still be starting."""
        deadlines = self._plan.config.deadlines
        deadline_s = getattr(deadlines, setting) + deadlines.start_s
        try:
            return ray.get(call, timeout=deadline_s)
        except ray.exceptions.GetTimeoutError:
            reason = f"no answer within deadlines.start_s + deadlines.{setting} = {deadline_s:g} s; raise the latter"
            raise StallError(reason, role=f"evaluation {role}") from None
        except ray.exceptions.RayError as error:
            raise typed(error, role=f"evaluation {role}", rank=0) from error

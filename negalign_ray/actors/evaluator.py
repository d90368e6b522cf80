"""Before and after: answers to held-out prompts, scored by heads that training never saw, and likelihoods.

Whoever samples (the run's samplers, or some started for `negalign-ray evaluate`) is passed in as a function.
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
from negalign_ray.evaluation.judging import judge_answers
from negalign_ray.evaluation.measure import Answered, Score, Thoughts, groups_said, groups_to_price, measure
from negalign_ray.evaluation.model_cache import (
    GROUPS_PER_CALL,
    PAIRS_PER_CALL,
    PROMPTS_PER_CALL,
    Generate,
    ModelCache,
    ScoreCache,
    in_parts,
)
from negalign_ray.evaluation.pricing import PriceBook
from negalign_ray.evaluation.side import Side
from negalign_ray.evaluation.summary import summarise
from negalign_ray.records import Group, SampleRequest, SamplingSpec
from negalign_ray.rewards.chat_judge import ChatJudge

SIDES_FILE = "evaluation.json"  # in the run directory: every item measured of both models, to compare runs by
Ask = Callable[[str, Sequence[Group]], list[list[float]]]  # method of a Reference, groups -> a number per response


class Evaluation:
    def __init__(
        self,
        plan: Plan,
        *,
        base_path: Path,
        base_cache: Path | None = None,
        own_cache: Path | None = None,
        namespace: str | None = None,
    ) -> None:
        """`base_path`: the model that is "before", and that KL is taken to.

        `base_cache` keeps what it says and thinks, for other runs; `own_cache` keeps that of any other model, and the
        scores: an evaluation that was cut short goes on from there. `namespace`: the run's, in Ray; None = its own.
        """
        self._namespace = namespace
        self._plan, self._config, self._base_path = plan, plan.config.evaluation, base_path
        self._base_cache, self._own_cache = base_cache, own_cache
        assert plan.probes is not None, "a plan with evaluation.enabled=false has nothing to evaluate with"
        self._probes = plan.probes

    def answer(self, generate: Generate, *, model: Path | None = None) -> Answered:
        """What `generate` answers to every prompt, PROMPTS_PER_CALL at a time; `model` is the folder of the model that
        answers, whose answers may be kept (None: it is in no folder yet)."""
        requests = [SampleRequest(prompt.token_ids, seed=prompt.prompt_id) for prompt in self._probes.asked]
        spec = SamplingSpec(self._config.max_new_tokens, temperature=self._config.temperature)
        cache = None if model is None else self._cache(model)
        if cache is not None:
            return Answered.of(self._probes, cache.answers(requests, spec, generate=generate))
        parts = (generate(part, spec) for part in in_parts(requests, PROMPTS_PER_CALL))
        return Answered.of(self._probes, [generation for part in parts for generation in part])

    def compare(
        self, before: Answered, after: Answered, *, policy_path: Path, save_as: Path | None = None
    ) -> dict[str, Any]:
        """The summary of two models: `before` was said by the base, `after` by the policy in `policy_path`.

        `save_as` gets every item measured of both, which `actors.compare` pairs across runs.
        """
        groups = groups_to_price(self._probes, before, after)
        with self._scorer() as score:  # it starts while the models price
            base = self._think("base", self._base_path, groups, before)
            policy = self._think("policy", policy_path, groups, after)
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
            base = self._think("base", self._base_path, groups_to_price(self._probes, answered), answered)
            side = measure(self._probes, answered, answered, model=base, base=base, score=score)
        self._write_answers(answer=answered)
        return self._summary(side, None)

    def judge(self, before: Answered, after: Answered) -> list[dict[str, Any]]:
        """The win rates that `evaluation.judge` gives; none without one. ScoreError: what it said so far is kept."""
        config = self._config.judge
        if config is None:
            return []
        folder = self._plan.config.run_dir / "samples"
        settings = {"resamples": self._config.bootstrap, "seed": self._plan.config.run.seed}
        return judge_answers(ChatJudge.load(config), config, self._probes, before, after, folder=folder, **settings)

    def _summary(self, first: Side, second: Side | None) -> dict[str, Any]:
        config = self._config
        return summarise(
            first,
            second,
            heads=config.heads,
            resamples=config.bootstrap,
            seed=self._plan.config.run.seed,
            tie_margin=config.tie_margin,
        )

    def _write_answers(self, **sides: Answered) -> None:
        """<run>/samples/evaluation.jsonl: every evaluated prompt with the answer of each side, for reading."""
        path = self._plan.config.run_dir / "samples" / "evaluation.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        answers = (answered.said for answered in sides.values())
        with path.open("w", encoding="utf-8") as file:
            for prompt, *said in zip(self._probes.asked, *answers, strict=True):
                texts = {name: answer.text for name, answer in zip(sides, said, strict=True)}
                row = {"prompt": prompt.text, "behaviour": prompt.behaviour, **texts}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _cache(self, model_path: Path) -> ModelCache | None:
        folder = self._base_cache if model_path == self._base_path else self._own_cache
        if folder is None:
            return None
        return ModelCache(folder, model_path, self._plan.config.samplers.engine, self._plan.sampler_dtype)

    @contextmanager
    def _scorer(self) -> Iterator[Score]:
        config, heads = self._plan.config, self._config.heads
        name = f"{config.run.name}/evaluation-scorer"
        options = actor_options(config.scorers, name=name, namespace=self._namespace)
        actor = start_actor(Scorer, options, config, heads=heads, rank=0, log_name="evaluation-scorer")

        def ask(pairs: Sequence[tuple[str, str]]) -> list[dict[str, float]]:
            return self._get(actor.score_pairs.remote(pairs), "scorer", setting="score_s")

        def score(pairs: Sequence[tuple[str, str]]) -> Mapping[str, Sequence[float]]:
            if self._own_cache is not None:
                return ScoreCache(self._own_cache).scores(pairs, heads, score=ask)
            rows = [row for part in in_parts(pairs, PAIRS_PER_CALL) for row in ask(part)]
            return {head.name: [row[head.name] for row in rows] for head in heads}

        try:
            yield score
        finally:
            ray.kill(actor)

    def _think(self, name: str, model_path: Path, groups: Sequence[Group], answered: Answered) -> Thoughts:
        """What the model in `model_path`, which said `answered`, thinks of every response and of its own."""
        cache = self._cache(model_path)
        said = groups_said(self._probes, answered)
        with self._reference(name, model_path) as ask:

            def prices(part: Sequence[Group]) -> list[list[float]]:
                return ask("response_logprobs", part)

            def entropies(part: Sequence[Group]) -> list[list[float]]:
                return ask("response_entropies", part)

            if cache is not None:
                return Thoughts(
                    cache.book(groups, measure=prices), cache.book(said, what="entropies", measure=entropies)
                )
            return Thoughts(*(PriceBook.of(*each) for each in ((groups, prices), (said, entropies))))

    @contextmanager
    def _reference(self, name: str, model_path: Path) -> Iterator[Ask]:
        """Asks an actor that is started for the first question."""
        config = self._plan.config
        full_name = f"{config.run.name}/evaluation-{name}"
        options = actor_options(config.references, name=full_name, namespace=self._namespace)
        actor = None

        def ask(method: str, groups: Sequence[Group]) -> list[list[float]]:
            nonlocal actor
            if actor is None:
                dtype = self._plan.sampler_dtype
                settings = {"names": (name,), "rank": 0, "model_path": str(model_path), "dtype": dtype}
                actor = start_actor(Reference, options, config, **settings)
            calls = (getattr(actor, method).remote(part) for part in in_parts(groups, GROUPS_PER_CALL))
            return [row for call in calls for row in self._get(call, "reference", setting="reference_s")]

        try:
            yield ask
        finally:
            if actor is not None:
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

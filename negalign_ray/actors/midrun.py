"""Evaluation while a run trains: the samplers answer fixed held-out prompts every few versions, a scorer scores them.

    publish(version) --due--> answers of all samplers, by one version --> scores --> row `step=version` of metrics.jsonl

What is trained on does not depend on it: every request has a seed of its own and every call of an engine stands for
itself (no prefixes are kept between calls), a sampler answers in turn with the waves, and new weights wait until the
answers are there. Nothing here ends a run: an evaluation that fails is left out with a warning.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import ray

from negalign_ray.actors.locate import namespace_of
from negalign_ray.actors.plan import Plan
from negalign_ray.actors.processes import actor_options, start_actor, wait_until_ready, within
from negalign_ray.actors.scorer import Scorer
from negalign_ray.config import EvaluationConfig
from negalign_ray.evaluation.figures import figures_of
from negalign_ray.evaluation.measure import Answered, measure_answers
from negalign_ray.evaluation.probes import Probes
from negalign_ray.records import Generation, SampleRequest, SamplingSpec

log = logging.getLogger(__name__)
Pair = tuple[str, str]
Ask = Callable[[Sequence[SampleRequest], SamplingSpec], Awaitable[tuple[int, list[Generation]]]]
"""-> the version that answered, and its answers."""
ScorePairs = Callable[[Sequence[Pair]], Awaitable[Sequence[Mapping[str, float]]]]
Write = Callable[[int, Mapping[str, float]], Any]  # a row of metrics: step, values


class MidRunEvaluation:
    """Belongs to the conductor's event loop."""

    def __init__(
        self,
        probes: Probes,
        config: EvaluationConfig,
        *,
        ask: Ask,
        score: ScorePairs,
        write: Write,
        close: Callable[[], None],
        last: int = 0,
    ) -> None:
        """`last`: the version evaluated last, of a resumed run."""
        self._probes, self._config = probes.first(config.every_num_prompts), config
        self._ask, self._score, self._write, self._close = ask, score, write, close
        self._last = last
        self._tasks: set[asyncio.Task] = set()

    def offer(self, version: int) -> None:
        """The samplers hold this version from now on. It is evaluated when a multiple of `evaluation.every` lies
        between the last one evaluated and this one: not every version reaches the samplers."""
        if version // self._config.every <= self._last // self._config.every:
            return
        self._last = version
        task = asyncio.get_running_loop().create_task(self._evaluate(version))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settle(self) -> None:
        """Until nothing is under way. Every call inside has a deadline."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def end(self) -> None:
        """No version is offered any more."""
        await self.settle()
        self._close()

    async def _evaluate(self, version: int) -> None:
        try:
            version, row = await self._measure()
            self._write(version, row)
        except Exception as error:  # whatever it is, training does not depend on it
            log.warning("the evaluation of version %d is left out: %s: %s", version, type(error).__name__, error)
            return
        log.info("evaluated version %d in %.1f s", version, row["eval/answer_s"])

    async def _measure(self) -> tuple[int, dict[str, float]]:
        started = time.perf_counter()
        requests = [SampleRequest(prompt.token_ids, seed=prompt.prompt_id) for prompt in self._probes.asked]
        spec = SamplingSpec(self._config.max_new_tokens, temperature=self._config.temperature)
        version, generations = await self._ask(requests, spec)
        answer_s = time.perf_counter() - started
        answered = Answered.of(self._probes, generations)
        scores = await self._scores(answered)

        def score(pairs: Sequence[Pair]) -> dict[str, list[float]]:
            return {head.name: [scores[pair][head.name] for pair in pairs] for head in self._config.heads}

        figures = figures_of(measure_answers(self._probes, answered, score=score), self._config.heads)
        values = {f"eval/{figure.key}": figure.sums.value(figure.transform) for figure in figures}
        row = {key: value for key, value in values.items() if value is not None}
        return version, row | {"eval/version": version, "eval/answer_s": answer_s}

    async def _scores(self, answered: Answered) -> dict[Pair, Mapping[str, float]]:
        if not self._config.heads:
            return {}
        prompts = (*self._probes.harmful_prompts, *self._probes.benign_prompts)
        said = (*answered.harmful, *answered.benign)
        pairs = [(prompt.text, answer.text) for prompt, answer in zip(prompts, said, strict=True)]
        return dict(zip(pairs, await self._score(pairs), strict=True))


def last_evaluated(rows: Iterable[Mapping[str, float | None]], *, step: int) -> int:
    """The newest version that has a row of its evaluation, of those until `step`; what was under way is not there."""
    versions = (int(row["eval/version"] or 0) for row in rows if "eval/version" in row)
    return max((version for version in versions if version <= step), default=0)


def start_midrun(plan: Plan, *, ask: Ask, write: Write, last: int) -> MidRunEvaluation:
    """With a scorer of its own, ready when this returns; without heads there is none."""
    config, probes = plan.config, plan.probes
    assert probes is not None, "evaluation.every needs evaluation.enabled"
    actor: Any = None
    if config.evaluation.heads:
        name, namespace = f"{config.run.name}/evaluation-scorer-midrun", namespace_of(config.run.name)
        options = actor_options(config.scorers, name=name, namespace=namespace)
        settings = {"heads": config.evaluation.heads, "rank": 1, "log_name": "evaluation-scorer"}
        actor = start_actor(Scorer, options, config, **settings)
        wait_until_ready({"evaluation scorer-1": actor.ready.remote()}, deadline_s=config.deadlines.start_s)

    async def score(pairs: Sequence[Pair]) -> list[dict[str, float]]:
        call, deadline_s = actor.score_pairs.remote(pairs), config.deadlines.score_s
        about: dict[str, Any] = {"setting": "score_s", "role": "evaluation scorer", "rank": 1, "version": None}
        return await within(call, deadline_s=deadline_s, **about)

    def close() -> None:
        if actor is not None:
            ray.kill(actor)

    return MidRunEvaluation(probes, config.evaluation, ask=ask, score=score, write=write, close=close, last=last)

"""Seconds of every stage, as straight lines through what bench measured.

    seconds = level * (fixed + per_unit * amount)

The line is fitted where most different amounts were measured with equally many threads; the level is set by the points
with the role's own threads. A decoding round reads all weights whatever the batch (fixed) and computes for each
sequence (per unit); an optimizer step has its own fixed part.
"""

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from negalign_ray.actors.memory import ModelSize
from negalign_ray.actors.plan import Plan
from negalign_ray.errors import ConfigError
from negalign_ray.planning.bench_file import Measured, Point


@dataclass(frozen=True, slots=True)
class Line:
    fixed_s: float
    per_unit_s: float

    def seconds(self, amount: float) -> float:
        return self.fixed_s + self.per_unit_s * amount

    def scaled(self, factor: float) -> "Line":
        return Line(self.fixed_s * factor, self.per_unit_s * factor)


@dataclass(frozen=True)
class Costs:
    """Of one actor of each role, with the threads that the configuration gives it."""

    decode_round: Line  # amount: sequences at once
    score_groups: Line
    price_tokens: Line
    learn_tokens: Line  # per rank
    weights_s: float
    gather_s: float
    answer_frac: float  # mean length of an answer over sampling.max_new_tokens
    notes: tuple[str, ...] = ()  # what was assumed beyond the measurements

    def sample_s(self, lengths: Sequence[int], *, max_num_seqs: int) -> float:
        """One call of a sampler: continuous batching, a sequence that ends makes room for the next.

        Lengths 2, 3, 1, two at once: after 2 rounds the first ends and the third comes in; after 3, all is done.
        """
        waiting = iter(lengths)
        ends: list[int] = []  # round in which each running sequence ends
        now, seconds = 0, 0.0
        for length in waiting:
            heapq.heappush(ends, now + length)
            if len(ends) < max_num_seqs:
                continue
            now, seconds = self._advance(now, seconds, ends)
        while ends:
            now, seconds = self._advance(now, seconds, ends)
        return seconds

    def _advance(self, now: int, seconds: float, ends: list[int]) -> tuple[int, float]:
        """Decode until the next sequence ends; all that end then are taken out."""
        rounds = ends[0] - now
        seconds += rounds * self.decode_round.seconds(len(ends))
        now = ends[0]
        while ends and ends[0] == now:
            heapq.heappop(ends)
        return now, seconds


def costs_of(plan: Plan, measured: Measured) -> Costs:
    """ConfigError when bench measured another model and does not tell its size."""
    config = plan.config
    notes: list[str] = []
    scale = _model_scale(plan, measured, notes)
    samplers, learners, references = config.samplers.threads, config.learners.threads, config.references.threads
    for role in ("samplers", "references", "learners"):
        if getattr(config, role).gpus:
            notes.append(f"{role}.gpus={getattr(config, role).gpus:g}, but bench measures CPUs: their times are wrong")
    if config.learners.lora is not None:
        notes.append("learners.lora: bench trained all weights")
    if config.uses_guide:
        notes.append("the guide was not measured: it takes no time here")
    if config.sampling.reward_gate:
        notes.append("no group is lost at sampling.reward_gate here; lost ones are sampled again")
    if config.scorers.heads:
        notes.append("scorers.heads are taken to be as fast as the head that bench used")
    return Costs(
        decode_round=fit(measured.decode_rounds, threads=samplers, what="samplers", notes=notes).scaled(scale),
        score_groups=fit(measured.score_groups, threads=1, what="scorers", notes=notes),
        price_tokens=fit(measured.price_tokens, threads=references, what="references", notes=notes).scaled(scale),
        learn_tokens=fit(measured.learn_tokens, threads=learners, what="learners", notes=notes).scaled(scale),
        weights_s=mean(measured.weights_s or (0.0,)) * scale,
        gather_s=mean(measured.gather_s or (0.0,)) * scale,
        answer_frac=mean(measured.answer_frac or (1.0,)),
        notes=tuple(notes),
    )


def fit(points: Sequence[Point], *, threads: int, what: str, notes: list[str]) -> Line:
    """Without points: no time, and a note."""
    if not points:
        notes.append(f"{what}: not measured, taken as no time")
        return Line(0.0, 0.0)
    by_threads: dict[int, list[Point]] = defaultdict(list)
    for point in points:
        by_threads[point.threads].append(point)
    nearest = min(by_threads, key=lambda measured: (abs(measured - threads), measured))
    richest = max(by_threads.values(), key=lambda group: (len({p.amount for p in group}), group[0].threads == nearest))
    line = _through(richest)
    level = mean(point.seconds / line.seconds(point.amount) for point in by_threads[nearest])
    if nearest != threads:
        notes.append(
            f"{what}: measured with {nearest} thread(s), {threads} taken to be {threads / nearest:g} times as fast"
        )
    return line.scaled(level * nearest / threads)


def _through(points: Sequence[Point]) -> Line:
    """Least squares, with neither part below 0; one amount alone: proportional."""
    middle_x, middle_y = mean(p.amount for p in points), mean(p.seconds for p in points)
    spread = sum((p.amount - middle_x) ** 2 for p in points)
    proportional = Line(0.0, middle_y / middle_x)
    if spread == 0:
        return proportional
    per_unit = sum((p.amount - middle_x) * (p.seconds - middle_y) for p in points) / spread
    if per_unit <= 0:
        return Line(middle_y, 0.0)
    fixed = middle_y - per_unit * middle_x
    return Line(fixed, per_unit) if fixed >= 0 else proportional


def _model_scale(plan: Plan, measured: Measured, notes: list[str]) -> float:
    """How many times as long everything takes with the plan's model: as many times as it has parameters."""
    model = plan.config.model.path
    if model == measured.model:
        return 1.0
    if measured.num_params is None:
        raise ConfigError(
            f"--bench measured {measured.model}, whose size the file does not tell, and the plan is for {model}; "
            f"measure that one: `negalign-ray bench --set model.path={model} --json FILE`."
        )
    scale = ModelSize.of(plan.model_path).num_params / measured.num_params
    notes.append(f"measured with {measured.model}; {model} is {scale:.3g} times its size, and all takes as much longer")
    return scale

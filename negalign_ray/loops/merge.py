"""One metrics row per optimizer step, from what the ranks and the roles reported."""

import math
from collections.abc import Callable, Sequence

from negalign_ray.config import LATENT_DISTANCE
from negalign_ray.loops.buffer import Outcome
from negalign_ray.loops.roles import Batch, StepReport
from negalign_ray.loops.rollout import Rollout

# Added up over the ranks, then this; everything else is a mean. Of the weight change the ranks send squares.
TOTALS: dict[str, Callable[[float], float]] = {
    "learner/tokens": float,
    "learner/weight_change_norm": math.sqrt,
    "num_groups": float,  # of each behaviour
}
LARGEST_EXPONENT = 700.0  # exp of more is no float

# What the rollout counts (`Rollout.counts`, since the start) and the metric that says it.
COUNTS = {
    "score_failures": "scorer/failed",
    "samples_dropped": "conductor/samples_dropped",
    "samples_gated": "conductor/samples_gated",
    "samplers_replaced": "conductor/samplers_replaced",
    "reissued": "conductor/reissued",
}


def merge_reports(reports: Sequence[StepReport], batch: Batch, *, rollout: Rollout) -> dict[str, float]:
    """Keys are those of `negalign_ray.metrics`; means are over groups (or tokens), seconds are the slowest rank's."""
    row = merge_ranks(reports)
    row["learner/tokens_per_s"] = row["learner/tokens"] / row["learner/compute_s"]
    row["learner/version"] = batch.step + 1
    if "learner/best_token_nll_nats" in row:
        row["learner/best_perplexity"] = math.exp(min(row["learner/best_token_nll_nats"], LARGEST_EXPONENT))
    row |= rollout.figures.get(batch.step, {})  # of the iteration that this step begins
    counts = {metric: rollout.counts[name] for name, metric in COUNTS.items()}
    return row | counts | _sampler_rows(batch, rollout) | _conductor_rows(row, batch, rollout)


def merge_ranks(reports: Sequence[StepReport]) -> dict[str, float]:
    """What the ranks say together, the same for any split of the batch over them."""
    row: dict[str, float] = {}
    for key in sorted({key for report in reports for key in report.sums}):
        total = sum(report.sums.get(key, 0.0) for report in reports)
        if of_total := TOTALS.get(key) or TOTALS.get(key.rpartition("/")[2]):
            row[key] = of_total(total)
            continue
        count = sum(report.counts.get(key, 0) for report in reports)
        if count:
            row[key] = total / count
    for key in reports[0].values:
        row[key] = max(report.values[key] for report in reports)
    return row


def _sampler_rows(batch: Batch, rollout: Rollout) -> dict[str, float]:
    step, clock = batch.step, rollout.clock
    row: dict[str, float] = {"sampler/version": rollout.sampler_version, "sampler/num": len(rollout.crew.ranks)}
    fresh = [card for handle in batch.handles for card in handle.card.fresh_samples]
    busy_s = clock.total_s(step, "sample")
    if fresh:
        row["sampler/length_tokens"] = sum(card.num_tokens for card in fresh) / len(fresh)
        row["sampler/distinct_openings_frac"] = len({card.opening for card in fresh}) / len(fresh)
        row["sampler/stop_frac"] = sum(card.stopped for card in fresh) / len(fresh)
        versions = [h.card.weight_version for h in batch.handles if h.card.weight_version is not None]
        row["sampler/staleness_steps"] = step - sum(versions) / len(versions)
    if busy_s:
        row["sampler/busy_s"] = busy_s
        row["sampler/tokens_per_s"] = clock.count(step, "sample", "tokens") / busy_s
    row["sampler/weights_s"] = clock.longest_s(step, "weights")
    row["scorer/busy_s"] = clock.total_s(step, "score")
    row["reference/busy_s"] = clock.total_s(step, "price")
    if num_prices := clock.count(step, "price", "prices"):
        row["reference/cache_hits_frac"] = clock.count(step, "price", "remembered") / num_prices
    rewards: dict[tuple[str, str], list[float]] = {}
    for handle in batch.handles:
        for key, value in handle.card.rewards.items():
            if key[0] != LATENT_DISTANCE:  # no head's score: the learner reports it
                rewards.setdefault(key, []).append(value)
    return row | {f"scorer/{head}_{role}": sum(v) / len(v) for (head, role), v in rewards.items()}


def _conductor_rows(row: dict[str, float], batch: Batch, rollout: Rollout) -> dict[str, float]:
    ledger, clock, step = rollout.buffer.ledger, rollout.clock, batch.step
    waited_for = sum(clock.longest_s(step, stage) for stage in ("weights", "sample", "score", "price", "guide"))
    return {
        "conductor/orders": ledger.issued,
        "conductor/trained": ledger.outcomes[Outcome.TRAINED] + len(batch.handles),
        "conductor/dropped_stale": ledger.outcomes[Outcome.DROPPED_STALE],
        "conductor/dropped_gate": ledger.outcomes[Outcome.DROPPED_GATE],
        "conductor/dropped_empty": ledger.outcomes[Outcome.DROPPED_EMPTY],
        "conductor/dropped_lost": ledger.outcomes[Outcome.DROPPED_LOST],
        "conductor/failed": ledger.outcomes[Outcome.FAILED] + ledger.outcomes[Outcome.DROPPED_SCORE],
        "conductor/buffer_groups": len(rollout.buffer),
        "conductor/in_flight_groups": len(rollout.buffer) - rollout.buffer.num_ready,
        # What the learner waited for beyond the roles' own work; meaningful when they alternate (staleness 0).
        "conductor/step_overhead_s": max(0.0, row["learner/pull_wait_s"] - waited_for),
    }

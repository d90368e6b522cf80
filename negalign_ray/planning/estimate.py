"""The time of a step in closed form, what bounds it, and how many samplers would keep the learners busy.

A step passes through a chain: weights, then its waves through sample, score, price; then learn, gather. With `depth`
steps under way at once, no step can take less than

    the chain / depth          depth = 1 + sampling.staleness, or what sampling.buffer_groups has room for
    what any role needs for its own stages
    what the cores of the busiest node need for the work on them

With `interval` sampling the chain is passed once per snapshot, and what bounds the steps in between counts for each.
"""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from negalign_ray.actors.packing import Node, Seating
from negalign_ray.actors.plan import Plan
from negalign_ray.config import Config, Resources
from negalign_ray.planning.costs import Costs
from negalign_ray.planning.workload import Workload

WAVES = ("sample", "score", "price")
ROLE_OF_STAGE = {
    "weights": "sampler",
    "sample": "sampler",
    "score": "scorer",
    "price": "reference",
    "learn": "learner",
    "gather": "learner",
}
MAX_CALLS, MAX_DRAWS = 16, 4096  # behind the mean time of a call
CHAIN = "chain of all stages; raise sampling.staleness, or sampling.buffer_groups where it has no room"


@dataclass(frozen=True)
class StageTimes:
    """Seconds of a step that the actors of a stage are busy, those that work side by side counted once."""

    seconds: Mapping[str, float]
    rounds: Mapping[str, int]  # waves that one actor of the stage takes one after the other

    @property
    def sampling_side_s(self) -> float:
        """Waves follow one another: the slowest stage takes all of them, each other one delays by a single wave.

        4 waves, sampled side by side for 20 s, then scored for 1 s and priced for 3 s each: 20 + 1 + 4 * 3
        """
        slowest = max(WAVES, key=lambda name: self.seconds[name])
        others = sum(self.seconds[name] / self.rounds[name] for name in WAVES if name != slowest)
        return self.seconds["weights"] + self.seconds[slowest] + others

    @property
    def learning_side_s(self) -> float:
        return self.seconds["learn"] + self.seconds["gather"]

    @property
    def chain_s(self) -> float:
        return self.sampling_side_s + self.learning_side_s


@dataclass(frozen=True)
class Estimate:
    stages_s: Mapping[str, float]  # see StageTimes
    sampling_side_s: float  # from new weights to the last price
    learning_side_s: float
    step_s: float
    depth: int  # steps under way at once
    bottleneck: str
    cores_s: float  # what the busiest node's cores need for a step's work
    busiest_node: str
    balanced_samplers: int | None  # fewest that keep the learners busy; None = no number does
    balance_limit: str  # the role, or the chain, that keeps it from balance where no number does


def estimate(plan: Plan, costs: Costs, work: Workload, *, seating: Seating, nodes: Sequence[Node]) -> Estimate:
    config, pools = plan.config, len(plan.reference_pools)
    times = stage_times(config, costs, work, num_samplers=config.samplers.num, pools=pools)
    depth = steps_under_way(config)
    node, cores_s = _busiest(config, times, seating, nodes)
    alone_s, bottleneck = _step(times, config, depth)
    balanced, limit = _balance(config, costs, work, pools=pools)
    return Estimate(
        stages_s=times.seconds,
        sampling_side_s=times.sampling_side_s,
        learning_side_s=times.learning_side_s,
        step_s=max(alone_s, cores_s),
        depth=depth,
        bottleneck=f"cores of {node}" if cores_s > alone_s else bottleneck,
        cores_s=cores_s,
        busiest_node=node,
        balanced_samplers=balanced,
        balance_limit=limit,
    )


def steps_under_way(config: Config) -> int:
    sampling = config.sampling
    allowed = sampling.refresh_every if sampling.schedule == "interval" else sampling.staleness + 1
    return min(allowed, sampling.buffer_groups // config.learners.groups_per_step)


def stage_times(config: Config, costs: Costs, work: Workload, *, num_samplers: int, pools: int) -> StageTimes:
    """As `Rollout._split` deals out a step: waves of `size` orders, to the samplers in turn."""
    size = config.samplers.orders_per_call or ceil(work.groups / num_samplers)
    num_waves = ceil(work.groups / size)
    actors = {"sample": num_samplers, "score": config.scorers.num, "price": config.references.num}
    rounds = {name: ceil(num_waves / num) for name, num in actors.items()}
    one_wave = {
        "sample": _mean_sample_s(costs, work, num_answers=size * work.answers, at_once=config.samplers.max_num_seqs),
        "score": costs.score_groups.seconds(size) if config.scorers.heads else 0.0,
        "price": costs.price_tokens.seconds(size * work.group_tokens) * pools,
    }
    seconds = {
        "weights": costs.weights_s,
        **{name: one_wave[name] * rounds[name] for name in WAVES},
        "learn": costs.learn_tokens.seconds(work.groups * work.group_tokens / config.learners.num),
        "gather": costs.gather_s,
    }
    return StageTimes(seconds, rounds)


def _mean_sample_s(costs: Costs, work: Workload, *, num_answers: int, at_once: int) -> float:
    """Over some calls with drawn lengths: the longest answer of a call decides, not the mean one."""
    numbers = random.Random(0)
    calls = max(1, min(MAX_CALLS, MAX_DRAWS // max(1, num_answers)))
    drawn = [[work.draw_length(numbers) for _ in range(num_answers)] for _ in range(calls)]
    return sum(costs.sample_s(lengths, max_num_seqs=at_once) for lengths in drawn) / calls


def role_seconds(times: StageTimes, config: Config) -> dict[str, float]:
    """What each role is busy with a step; weights move once per snapshot."""
    every = config.sampling.refresh_every if config.sampling.schedule == "interval" else 1
    busy: dict[str, float] = defaultdict(float)
    for stage, seconds in times.seconds.items():
        busy[ROLE_OF_STAGE[stage]] += seconds / every if stage in ("weights", "gather") else seconds
    return busy


def _step(times: StageTimes, config: Config, depth: int) -> tuple[float, str]:
    """(seconds, what bounds them), cores left out."""
    busy = role_seconds(times, config)
    role = max(busy, key=lambda name: busy[name])
    if config.sampling.schedule == "interval":
        every = config.sampling.refresh_every
        between_s = (times.chain_s - times.seconds["weights"] - times.seconds["gather"]) / depth
        pace_s = max(busy[role], between_s)
        return pace_s + max(0.0, times.chain_s - pace_s) / every, f"{role}s"
    if depth > 1 and times.chain_s / depth > busy[role]:
        return times.chain_s / depth, CHAIN
    return max(times.chain_s / depth, busy[role]), f"{role}s"


def _busiest(config: Config, times: StageTimes, seating: Seating, nodes: Sequence[Node]) -> tuple[str, float]:
    """Node whose cores need longest for their actors' work of one step, and how long. GPUs are not counted."""
    sections: dict[str, Resources] = {
        "sampler": config.samplers,
        "learner": config.learners,
        "scorer": config.scorers,
        "reference": config.references,
    }
    busy, needed = role_seconds(times, config), defaultdict[int, float](float)
    for seat in seating.seats:
        section = sections.get(seat.role)
        if section is not None and not section.gpus:
            cores = max(1.0, nodes[seat.node].cpus)
            needed[seat.node] += busy[seat.role] * min(section.threads, cores) / cores
    if not needed:
        return "", 0.0
    node = max(needed, key=lambda index: needed[index])
    return nodes[node].name, needed[node]


def _balance(config: Config, costs: Costs, work: Workload, *, pools: int) -> tuple[int | None, str]:
    """Fewest samplers with which nothing takes longer than the learners, given one step of staleness at least."""
    if not work.answers:
        return None, ""
    depth = max(2, steps_under_way(config))
    for num in range(1, work.groups + 1):  # beyond, there is less than one order for each
        times = stage_times(config, costs, work, num_samplers=num, pools=pools)
        busy = role_seconds(times, config)
        if max(times.chain_s / depth, *busy.values()) <= busy["learner"]:
            return num, ""
    slowest = max((name for name in busy if name != "learner"), key=lambda name: busy[name])
    return None, f"{slowest}s" if busy[slowest] > busy["learner"] else CHAIN

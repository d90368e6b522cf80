"""The time of a step in closed form, what bounds it, and how many samplers would keep the learners busy.

A step passes through a chain of stages: weights, sample, score, price | learn, gather. With `depth` steps under way at
once, no step can take less than

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

SAMPLING_SIDE, LEARNING_SIDE = ("weights", "sample", "score", "price"), ("learn", "gather")
ROLE_OF_STAGE = {
    "weights": "sampler",
    "sample": "sampler",
    "score": "scorer",
    "price": "reference",
    "learn": "learner",
    "gather": "learner",
}
MAX_CALLS, MAX_DRAWS = 16, 4096  # behind the mean time of a call
CHAIN = "the chain of all stages; raise sampling.staleness, or sampling.buffer_groups where it has no room"


@dataclass(frozen=True)
class Estimate:
    stages_s: Mapping[str, float]  # seconds that a step passes in each, in the order of the chain
    step_s: float
    depth: int  # steps under way at once
    bottleneck: str
    cores_s: float  # what the busiest node's cores need for a step's work
    busiest_node: str
    balanced_samplers: int | None  # fewest that keep the learners busy; None = no number does
    balance_limit: str  # the role that keeps it from balance, where no number does

    @property
    def sampling_side_s(self) -> float:
        return sum(self.stages_s[name] for name in SAMPLING_SIDE)

    @property
    def learning_side_s(self) -> float:
        return sum(self.stages_s[name] for name in LEARNING_SIDE)


def estimate(plan: Plan, costs: Costs, work: Workload, *, seating: Seating, nodes: Sequence[Node]) -> Estimate:
    config, pools = plan.config, len(plan.reference_pools)
    stages = stage_seconds(config, costs, work, num_samplers=config.samplers.num, pools=pools)
    depth = steps_under_way(config)
    node, cores_s = _busiest(config, stages, seating, nodes)
    alone_s, bottleneck = _step(stages, config, depth)
    balanced, limit = _balance(config, costs, work, pools=pools)
    return Estimate(
        stages_s=stages,
        step_s=max(alone_s, cores_s),
        depth=depth,
        bottleneck=f"the cores of {node}" if cores_s > alone_s else bottleneck,
        cores_s=cores_s,
        busiest_node=node,
        balanced_samplers=balanced,
        balance_limit=limit,
    )


def steps_under_way(config: Config) -> int:
    sampling = config.sampling
    allowed = sampling.refresh_every if sampling.schedule == "interval" else sampling.staleness + 1
    return min(allowed, sampling.buffer_groups // config.learners.groups_per_step)


def stage_seconds(config: Config, costs: Costs, work: Workload, *, num_samplers: int, pools: int) -> dict[str, float]:
    """As `Rollout._split` deals out a step: waves of `size` orders, to the samplers in turn."""
    size = config.samplers.orders_per_call or ceil(work.groups / num_samplers)
    num_waves = ceil(work.groups / size)
    sample_s = _mean_sample_s(costs, work, num_answers=size * work.answers, at_once=config.samplers.max_num_seqs)
    price_s = costs.price_tokens.seconds(size * work.group_tokens) * pools
    score_s = costs.score_groups.seconds(size) if config.scorers.heads else 0.0
    return {
        "weights": costs.weights_s,
        "sample": sample_s * ceil(num_waves / num_samplers),
        "score": score_s * ceil(num_waves / config.scorers.num),
        "price": price_s * ceil(num_waves / config.references.num),
        "learn": costs.learn_tokens.seconds(work.groups * work.group_tokens / config.learners.num),
        "gather": costs.gather_s,
    }


def _mean_sample_s(costs: Costs, work: Workload, *, num_answers: int, at_once: int) -> float:
    """Over some calls with drawn lengths: the longest answer of a call decides, not the mean one."""
    numbers = random.Random(0)
    calls = max(1, min(MAX_CALLS, MAX_DRAWS // max(1, num_answers)))
    drawn = [[work.draw_length(numbers) for _ in range(num_answers)] for _ in range(calls)]
    return sum(costs.sample_s(lengths, max_num_seqs=at_once) for lengths in drawn) / calls


def role_seconds(stages: Mapping[str, float], config: Config) -> dict[str, float]:
    """What each role is busy with a step; weights move once per snapshot."""
    every = config.sampling.refresh_every if config.sampling.schedule == "interval" else 1
    busy: dict[str, float] = defaultdict(float)
    for stage, seconds in stages.items():
        busy[ROLE_OF_STAGE[stage]] += seconds / every if stage in ("weights", "gather") else seconds
    return busy


def _step(stages: Mapping[str, float], config: Config, depth: int) -> tuple[float, str]:
    """(seconds, what bounds them), cores left out."""
    chain_s, busy = sum(stages.values()), role_seconds(stages, config)
    role = max(busy, key=lambda name: busy[name])
    if config.sampling.schedule == "interval":
        every = config.sampling.refresh_every
        between_s = (chain_s - stages["weights"] - stages["gather"]) / depth
        pace_s = max(busy[role], between_s)
        return pace_s + max(0.0, chain_s - pace_s) / every, f"{role}s"
    if depth > 1 and chain_s / depth > busy[role]:
        return chain_s / depth, CHAIN
    return max(chain_s / depth, busy[role]), f"{role}s"


def _busiest(config: Config, stages: Mapping[str, float], seating: Seating, nodes: Sequence[Node]) -> tuple[str, float]:
    """Node whose cores need longest for their actors' work of one step, and how long. GPUs are not counted."""
    sections: dict[str, Resources] = {
        "sampler": config.samplers,
        "learner": config.learners,
        "scorer": config.scorers,
        "reference": config.references,
    }
    busy, needed = role_seconds(stages, config), defaultdict[int, float](float)
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
        stages = stage_seconds(config, costs, work, num_samplers=num, pools=pools)
        busy = role_seconds(stages, config)
        if max(sum(stages.values()) / depth, *busy.values()) <= busy["learner"]:
            return num, ""
    return None, max((name for name in busy if name != "learner"), key=lambda name: busy[name]) + "s"

"""Discrete-event simulation of a run: the conductor's own loop, roles that take simulated time.

plan, costs, seats --> Rollout (the real one) <--> SimulatedFleet --> steps/s, idle shares, ages of samples
                          ^ pull, publish, trained
                          +-- learners: every rank works on its share, rank 0 publishes
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from negalign_ray.actors.packing import Node, Seating
from negalign_ray.actors.plan import Plan
from negalign_ray.actors.wiring import make_orders, make_rollout
from negalign_ray.errors import StallError
from negalign_ray.loops.buffer import Outcome
from negalign_ray.loops.rollout import Rollout
from negalign_ray.planning.compute import SharedCompute
from negalign_ray.planning.costs import Costs
from negalign_ray.planning.simulated_fleet import Actor, SimulatedFleet
from negalign_ray.planning.virtual_time import now_s, run_in_virtual_time
from negalign_ray.planning.workload import Workload

MAX_GROUPS = 20_000  # of a simulation: a few seconds
MIN_STEPS, MAX_STEPS, WARMUP_STEPS = 4, 30, 4


@dataclass(frozen=True)
class Prediction:
    """Of the steady state: sampling from the current policy, first steps left out."""

    step_s: float  # mean
    groups_per_s: float
    sampled_tokens_per_s: float
    idle_frac: Mapping[str, float]  # role -> share of its actors' time
    staleness_steps: float  # mean age of the samples trained on
    max_buffer_groups: int
    dropped_stale: int  # orders
    num_steps: int  # measured
    loop_groups_per_s: float  # groups handled per second of CPU time here: the loop can do at least as many


def simulate(
    plan: Plan, costs: Costs, work: Workload, *, seating: Seating, nodes: Sequence[Node], num_steps: int | None = None
) -> Prediction:
    """StallError when a batch would miss deadlines.pull_s."""
    warmup, measured, after = _lengths(plan, num_steps)
    total = warmup + measured + after
    plan = _steady(plan, num_steps=total)
    started = time.process_time()
    run = run_in_virtual_time(_SimulatedRun(plan, costs, work, _computes(seating, nodes, plan)).execute())
    cpu_s = time.process_time() - started
    return run.predict(warmup=warmup, measured=measured, loop_groups_per_s=total * work.groups / cpu_s)


def _lengths(plan: Plan, num_steps: int | None) -> tuple[int, int, int]:
    """(steps left out, steps measured, steps behind them): of `interval` sampling, whole intervals.

    Behind the measured steps come as many as are under way with the last of them: near its end a run samples no more.
    """
    sampling, groups = plan.config.sampling, plan.config.learners.groups_per_step
    measured = num_steps or max(MIN_STEPS, min(MAX_STEPS, MAX_GROUPS // groups))
    if sampling.schedule == "online":
        return WARMUP_STEPS + sampling.staleness, measured, sampling.staleness + 1
    every = sampling.refresh_every
    return every, every * max(1, measured // every), 0


def _steady(plan: Plan, *, num_steps: int) -> Plan:
    config = plan.config
    sampling = config.sampling.model_copy(update={"online_from_step": 0})
    learners = config.learners.model_copy(update={"steps": num_steps})
    return replace(plan, config=config.model_copy(update={"sampling": sampling, "learners": learners}))


def _computes(seating: Seating, nodes: Sequence[Node], plan: Plan) -> dict[Actor, SharedCompute]:
    """What each actor computes with: the cores of its node, or the first of its GPUs (ranks of a device share it)."""
    cores = [SharedCompute(max(1.0, node.cpus)) for node in nodes]
    devices: dict[tuple[int, int], SharedCompute] = {}
    computes: dict[Actor, SharedCompute] = {}
    for seat in seating.seats:
        if seat.gpus:
            computes[seat.role, seat.rank] = devices.setdefault((seat.node, seat.gpus[0]), SharedCompute(1.0))
        else:
            computes[seat.role, seat.rank] = cores[seat.node]
    return computes


class _SimulatedRun:
    def __init__(self, plan: Plan, costs: Costs, work: Workload, computes: Mapping[Actor, SharedCompute]) -> None:
        self._plan, self._config, self._costs, self._work = plan, plan.config, costs, work
        self._fleet = SimulatedFleet(plan.config, costs, work, compute=computes, num_pools=len(plan.reference_pools))
        self._ends_s: list[float] = []
        self._ages: list[float] = []
        self._sampled: list[int] = []  # tokens, until the end of each step
        self._max_buffer = 0

    async def execute(self) -> "_SimulatedRun":
        orders = make_orders(self._plan, context_ids=lambda prompt, instruction: ())
        self._rollout = make_rollout(self._plan, fleet=self._fleet, orders=orders)
        await self._rollout.start()
        await self._learn(self._rollout)
        await self._rollout.close()
        return self

    async def _learn(self, rollout: Rollout) -> None:
        """What the learner ranks do, step by step; publishing goes on behind them, as it does in a run."""
        publishing: asyncio.Task | None = None
        for step in range(self._config.learners.steps):
            handles = await self._pull(rollout, step)
            self._max_buffer = max(self._max_buffer, len(rollout.buffer))
            await self._train_on(sum(handle.card.num_tokens for handle in handles))
            version = step + 1
            if rollout.schedule.publishes(version):
                await self._fleet.work(("learner", 0), self._costs.gather_s, self._config.learners)
                if publishing is not None:
                    await publishing
                publishing = asyncio.create_task(rollout.publish(version, weights=None))
            await rollout.trained(step)
            self._ends_s.append(now_s())
            self._sampled.append(self._fleet.sampled_tokens)
            self._ages.append(_mean_age(step, handles))
        if publishing is not None:
            await publishing

    async def _pull(self, rollout: Rollout, step: int):
        deadline_s = self._config.deadlines.pull_s
        try:
            batch = await rollout.pull(step, timeout_s=deadline_s)
        except TimeoutError:
            raise StallError(
                f"the batch of step {step} would not be ready within deadlines.pull_s={deadline_s:g} s; raise it, or "
                "add samplers",
                role="simulated learner",
            ) from None
        assert batch is not None, "nobody stops a simulation"
        return batch.handles

    async def _train_on(self, num_tokens: int) -> None:
        learners = self._config.learners
        seconds = self._costs.learn_tokens.seconds(num_tokens / learners.num)
        await asyncio.gather(*(self._fleet.work(("learner", r), seconds, learners) for r in range(learners.num)))

    def predict(self, *, warmup: int, measured: int, loop_groups_per_s: float) -> Prediction:
        first, last = warmup - 1, warmup + measured - 1
        start_s, end_s = self._ends_s[first], self._ends_s[last]
        window_s = end_s - start_s
        return Prediction(
            step_s=window_s / measured,
            groups_per_s=measured * self._work.groups / window_s,
            sampled_tokens_per_s=(self._sampled[last] - self._sampled[first]) / window_s,
            idle_frac={role: self._idle_frac(role, num, start_s, end_s) for role, num in self._actors().items()},
            staleness_steps=sum(self._ages[warmup : last + 1]) / measured,
            max_buffer_groups=self._max_buffer,
            dropped_stale=self._rollout.buffer.ledger.outcomes[Outcome.DROPPED_STALE],
            num_steps=measured,
            loop_groups_per_s=loop_groups_per_s,
        )

    def _actors(self) -> dict[str, int]:
        config, pools = self._config, len(self._plan.reference_pools)
        present = {
            "sampler": config.samplers.num,
            "scorer": config.scorers.num if config.scorers.heads else 0,
            "reference": config.references.num * pools,
            "learner": config.learners.num,
        }
        return {role: num for role, num in present.items() if num}

    def _idle_frac(self, role: str, num: int, start_s: float, end_s: float) -> float:
        return max(0.0, 1.0 - self._fleet.timesheet.busy_s(role, start_s, end_s) / (num * (end_s - start_s)))


def _mean_age(step: int, handles: Sequence) -> float:
    versions = [handle.card.weight_version for handle in handles if handle.card.weight_version is not None]
    return step - sum(versions) / len(versions) if versions else 0.0

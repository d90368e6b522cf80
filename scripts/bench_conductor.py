"""How many groups per second the conductor's loop handles by itself, and whether its memory stays bounded.

    python scripts/bench_conductor.py                              # a few seconds on one core
    python scripts/bench_conductor.py --samplers 4000 --groups 8192

The real `Rollout` runs with roles that answer at once, so all time is the loop's own: orders, seeds, waves, buffer,
ledger, weights. Ray's calls are left out (bench_conductor_in_ray.py has them).
"""

import argparse
import asyncio
import gc
import json
import resource
import time
from collections.abc import Sequence
from typing import Any

from negalign_ray.config import SamplingConfig
from negalign_ray.loops.buffer import Handle
from negalign_ray.loops.orders import OrderFactory
from negalign_ray.loops.roles import StageResult
from negalign_ray.loops.rollout import Rollout
from negalign_ray.records import Group, GroupCard, Order, Prompt, Response, ResponseCard, Role, WeightReceipt

NUM_PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 10_000, 64, 32


class InstantFleet:
    """Answers at once, with cards as real roles would send them."""

    def __init__(self, num_samplers: int) -> None:
        self.num_samplers = num_samplers
        self._versions = [0] * num_samplers

    async def sample(self, rank: int, orders: Sequence[Order]) -> StageResult:
        await asyncio.sleep(0)
        return StageResult(tuple(Handle(None, self._card(order, rank)) for order in orders), busy_s=0.0)

    async def hold(self, groups: Sequence[Group]) -> StageResult:
        raise AssertionError("every order asks for samples")

    async def score(self, handles: Sequence[Handle]) -> StageResult:
        await asyncio.sleep(0)
        return StageResult(tuple(handles), busy_s=0.0)

    async def price(self, handles: Sequence[Handle]) -> StageResult:
        await asyncio.sleep(0)
        return StageResult(tuple(handles), busy_s=0.0)

    async def follow(self, weights: Any, version: int) -> float:
        return 0.0

    async def guide(self, handles: Sequence[Handle]) -> StageResult:
        return StageResult(tuple(handles), busy_s=0.0)

    async def load_weights(self, rank: int, weights: Any, version: int) -> WeightReceipt:
        await asyncio.sleep(0)
        self._versions[rank] = version
        return WeightReceipt(rank, version, checksum=0, seconds=0.0, num_bytes=0)

    async def replace_sampler(self, rank: int, weights: Any, version: int) -> None:
        raise AssertionError("nothing fails here")

    def _card(self, order: Order, rank: int) -> GroupCard:
        samples = tuple(ResponseCard(Role.SAMPLE, ANSWER_TOKENS) for _ in order.requests)
        num_tokens = PROMPT_TOKENS + ANSWER_TOKENS * len(samples)
        version, prompt_id = self._versions[rank], order.prompt.prompt_id
        return GroupCard(order.order_id, version, num_tokens, samples, prompt_id=prompt_id)


def make_rollout(options: argparse.Namespace, *, num_steps: int) -> Rollout:
    tokens = tuple(range(PROMPT_TOKENS))
    negative = Response(Role.NEGATIVE, tokens, "no")
    prompts = [Prompt(i, "question", (("user", "question"),), tokens, (negative,)) for i in range(NUM_PROMPTS)]
    orders = OrderFactory(
        prompts, instructions=(), num_samples=options.answers, seed=0, context_ids=lambda prompt, text: prompt.token_ids
    )
    sampling = SamplingConfig(
        num_samples=options.answers,
        instructions=None,
        online_from_step=0,
        staleness=options.staleness,
        buffer_groups=(options.staleness + 1) * options.groups,
    )
    return Rollout(
        fleet=InstantFleet(options.samplers),
        orders=orders,
        config=sampling,
        groups_per_step=options.groups,
        num_steps=num_steps,
        orders_per_wave=options.orders_per_call,
    )


async def train(rollout: Rollout, *, num_steps: int) -> list[tuple[float, int]]:
    """(CPU seconds, resident bytes) at the end of every step.

    The loop is one thread that never waits here, so the CPU's seconds are those that it needs, on a busy machine too.
    """
    ends = []
    await rollout.start()
    for step in range(num_steps):
        await rollout.pull(step, timeout_s=600)
        await rollout.publish(step + 1, weights=None)
        await rollout.trained(step)
        ends.append((time.process_time(), resident_bytes()))
    await rollout.close()
    return ends


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", type=int, default=1000)
    parser.add_argument("--groups", type=int, default=2048, help="prompts per optimizer step")
    parser.add_argument("--answers", type=int, default=4, help="per prompt")
    parser.add_argument("--staleness", type=int, default=1)
    parser.add_argument("--orders-per-call", type=int, default=None)
    parser.add_argument("--total", type=int, default=20_000, help="groups, about; the first step is warm-up")
    options = parser.parse_args()
    num_steps = max(4, options.total // options.groups)
    rollout = make_rollout(options, num_steps=num_steps)
    gc.collect()
    ends = asyncio.run(train(rollout, num_steps=num_steps))
    (first_s, first_bytes), (last_s, last_bytes) = ends[0], ends[-1]
    num_groups = (num_steps - 1) * options.groups
    figures = {
        "groups_per_cpu_s": round(num_groups / (last_s - first_s)),
        "samplers": options.samplers,
        "groups_per_step": options.groups,
        "answers": options.answers,
        "steps": num_steps,
        "memory_growth_mib": round((last_bytes - first_bytes) / 2**20, 1),  # from the first step to the last
        "open_orders_at_the_end": len(rollout.buffer.ledger.open_ids),
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

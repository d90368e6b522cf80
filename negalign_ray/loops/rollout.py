"""The conductor's loop: keeps the buffer filled, hands out batches, and moves weights to the samplers.

    cursor --orders--> sample --> score --> price --> buffer --pull--> learners
                         ^                                               |
                         +------------- publish(version, weights) <------+

One *wave* = the orders of one step that go to one sampler together. Waves of a step are cut the same way every time,
so a strictly on-policy run repeats exactly. All waiting is on one condition; nothing here knows Ray or torch.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from negalign_ray.config import SamplingConfig
from negalign_ray.errors import NegalignError, RoleError, ScoreError
from negalign_ray.loops.buffer import Handle, Outcome, SlotBuffer
from negalign_ray.loops.orders import OrderFactory
from negalign_ray.loops.roles import Batch, Fleet
from negalign_ray.loops.schedule import SamplingSchedule
from negalign_ray.loops.stages import StageClock
from negalign_ray.records import Group, Order

log = logging.getLogger(__name__)

Wave = list[tuple[int, Order]]  # (slot, order)


class Rollout:
    def __init__(
        self,
        *,
        fleet: Fleet,
        orders: OrderFactory,
        config: SamplingConfig,
        groups_per_step: int,
        num_steps: int,
        orders_per_wave: int | None = None,
        wants_scores: bool = True,
        wants_references: bool = True,
    ) -> None:
        self.buffer = SlotBuffer(groups_per_step=groups_per_step, capacity=config.buffer_groups)
        self.schedule = SamplingSchedule.from_config(config)
        self.sampler_version = 0
        self.counts: Counter[str] = Counter()
        self.clock = StageClock()
        self._fleet, self._orders, self._config, self._num_steps = fleet, orders, config, num_steps
        self._orders_per_wave, self._wants_scores, self._wants_references = (
            orders_per_wave,
            wants_scores,
            wants_references,
        )
        self._weights: Any = None
        self._next_step = 0
        self._changed = asyncio.Condition()
        self._sampler_locks = [asyncio.Lock() for _ in range(fleet.num_samplers)]
        self._publish_lock = asyncio.Lock()
        self._tasks: set[asyncio.Task] = set()
        self._fatal: NegalignError | None = None
        self._failures_in_a_row = 0
        self._stopped = False
        self._started = False

    # -- what the conductor calls ------------------------------------------------------------------------------

    async def start(self) -> None:
        self._started = True
        self._issue_steps()

    async def pull(self, step: int, *, timeout_s: float) -> Batch | None:
        """The batch of `step`, the same for every rank; None when the run was stopped.

        Raises TimeoutError when it is not ready in time, and the fatal error that ended the rollout, if any.
        """
        async with self._changed:
            await asyncio.wait_for(
                self._changed.wait_for(lambda: self._fatal or self._stopped or self.buffer.is_ready(step)), timeout_s
            )
        if self._fatal:
            raise self._fatal
        return None if self._stopped else Batch(step, self.buffer.take(step))

    async def trained(self, step: int) -> None:
        self.buffer.trained(step)
        self.clock.forget_before(step)
        self._issue_steps()

    async def publish(self, version: int, weights: Any) -> None:
        """Give `weights` to every sampler; a sampler that does not confirm them is replaced."""
        async with self._publish_lock:
            if version <= self.sampler_version:
                return
            self._weights = weights
            seconds = await asyncio.gather(*(self._load(rank, version) for rank in range(self._fleet.num_samplers)))
            self.sampler_version = version
            self.clock.add(version, "weights", max(seconds))
        self._issue_steps()
        await self._notify()

    async def wait_for_version(self, version: int, *, timeout_s: float) -> None:
        async with self._changed:
            await asyncio.wait_for(
                self._changed.wait_for(lambda: self._fatal or self.sampler_version >= version), timeout_s
            )
        if self._fatal:
            raise self._fatal

    async def stop(self) -> None:
        self._stopped = True
        await self._notify()

    async def close(self) -> None:
        """End what is open: every order has an outcome afterwards."""
        self._stopped = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.buffer.give_up()
        await self._notify()

    @property
    def fatal(self) -> NegalignError | None:
        return self._fatal

    # -- issuing -----------------------------------------------------------------------------------------------

    def _issue_steps(self) -> None:
        """Issue every step whose weights are there and which the buffer has room for."""
        while (
            self._started
            and not self._stopped
            and self._fatal is None
            and self._next_step < self._num_steps
            and self.sampler_version >= self.schedule.oldest_allowed(self._next_step)
            and self.buffer.has_room_for_step()
        ):
            wave: Wave = []
            for slot in self.buffer.slots_of(self._next_step):
                order = self._orders.next_order()
                self.buffer.issue(slot, order)
                wave.append((slot, order))
            for rank, part in self._split(wave):
                self._spawn(self._produce(rank, part))
            self._next_step += 1

    def _split(self, wave: Wave) -> list[tuple[int, Wave]]:
        """Contiguous, near-equal parts, one per sampler (or of `orders_per_wave`, dealt out in turn)."""
        num_samplers = self._fleet.num_samplers
        size = self._orders_per_wave or -(-len(wave) // num_samplers)
        parts = [wave[start : start + size] for start in range(0, len(wave), size)]
        return [(index % num_samplers, part) for index, part in enumerate(parts)]

    def _spawn(self, coroutine) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            error = task.exception()
            wrapped = error if isinstance(error, NegalignError) else RoleError(repr(error), role="conductor")
            asyncio.get_running_loop().create_task(self._die(wrapped))

    # -- one wave ----------------------------------------------------------------------------------------------

    async def _produce(self, rank: int, wave: Wave) -> None:
        step = self.buffer.step_of(wave[0][0])
        handles = await self._sample(rank, wave, step)
        if handles is None:
            return
        wave, handles = self._keep_usable(rank, wave, handles, Outcome.DROPPED_EMPTY)
        if handles and self._wants_scores:
            try:
                scored = await self._fleet.score(handles)
            except ScoreError as error:
                log.warning("%s; %d groups dropped and re-ordered", error, len(wave))
                self.counts["score_failures"] += 1
                for slot, _ in wave:
                    self._order_again(rank, slot, Outcome.DROPPED_SCORE, error)
                return
            self.clock.add(step, "score", scored.busy_s)
            self.counts["samples_gated"] += _num_samples(handles) - _num_samples(scored.handles)
            wave, handles = self._keep_usable(rank, wave, scored.handles, Outcome.DROPPED_GATE)
        if handles and self._wants_references:
            priced = await self._fleet.price(handles)
            self.clock.add(step, "price", priced.busy_s, priced.num_tokens)
            handles = priced.handles
        for (slot, _), handle in zip(wave, handles, strict=True):
            self.buffer.fill(slot, handle)
            self._failures_in_a_row = 0
        for slot in self.buffer.stale_slots(step, self.schedule.oldest_allowed(step)):
            self._order_again(rank, slot, Outcome.DROPPED_STALE)
        await self._notify()

    async def _sample(self, rank: int, wave: Wave, step: int) -> Sequence[Handle] | None:
        orders = [order for _, order in wave]
        if not orders[0].requests:
            groups = [Group(order.order_id, order.prompt, order.prompt.responses) for order in orders]
            return (await self._fleet.hold(groups)).handles
        try:
            async with self._sampler_locks[rank]:
                sampled = await self._fleet.sample(rank, orders)
        except RoleError as error:
            log.warning("%s; replacing it and re-issuing %d orders", error, len(orders))
            await self._replace(rank)
            self.counts["reissued"] += len(wave)
            retries = [(slot, replace(order, attempt=order.attempt + 1)) for slot, order in wave]
            if retries[0][1].attempt >= self._config.max_attempts:
                await self._die(error)
            else:
                self._spawn(self._produce(rank, retries))
            return None
        self.clock.add(step, "sample", sampled.busy_s, sampled.num_tokens)
        wanted = sum(len(order.requests) for order in orders)
        self.counts["samples_dropped"] += wanted - _num_samples(sampled.handles)
        return sampled.handles

    def _keep_usable(
        self, rank: int, wave: Wave, handles: Sequence[Handle], outcome: Outcome
    ) -> tuple[Wave, list[Handle]]:
        kept_wave, kept_handles = [], []
        for (slot, order), handle in zip(wave, handles, strict=True):
            if order.requests and handle.card.num_samples < self._config.min_samples:
                self._order_again(rank, slot, outcome)
            else:
                kept_wave.append((slot, order))
                kept_handles.append(handle)
        return kept_wave, kept_handles

    def _order_again(self, rank: int, slot: int, outcome: Outcome, error: NegalignError | None = None) -> None:
        """End the slot's order and put another one in its place: same prompt first, later the next prompt."""
        spent = self.buffer.drop(slot, outcome)
        self._failures_in_a_row += 1
        limit = self._config.max_attempts * self.buffer.groups_per_step
        if self._failures_in_a_row > limit:
            reason = f"{self._failures_in_a_row} orders in a row ended without a usable group, the last as {outcome}"
            hint = error or "look at sampling.min_samples, sampling.reward_gate and sampling.max_new_tokens"
            self._spawn(self._die(RoleError(f"{reason}; {hint}", role="conductor")))
            return
        exhausted = spent.attempt + 1 >= self._config.max_attempts
        order = self._orders.next_order() if exhausted else self._orders.again(spent)
        self.buffer.issue(slot, order)
        self._spawn(self._produce(rank, [(slot, order)]))

    # -- samplers ----------------------------------------------------------------------------------------------

    async def _load(self, rank: int, version: int) -> float:
        try:
            async with self._sampler_locks[rank]:
                receipt = await self._fleet.load_weights(rank, self._weights, version)
            return receipt.seconds
        except RoleError as error:
            log.warning("%s; replacing it", error)
            await self._replace(rank, version)
            return 0.0

    async def _replace(self, rank: int, version: int | None = None) -> None:
        self.counts["samplers_replaced"] += 1
        async with self._sampler_locks[rank]:
            await self._fleet.replace_sampler(rank, self._weights, self.sampler_version if version is None else version)

    async def _die(self, error: NegalignError) -> None:
        self._fatal = self._fatal or error
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _num_samples(handles: Sequence[Handle]) -> int:
    return sum(handle.card.num_samples for handle in handles)

"""The conductor's loop: keeps the buffer filled, hands out batches, and moves weights to the samplers.

    cursor --orders--> sample --> score --> price --> (guide) --> buffer --pull--> learners
                         ^                    ^                                      |
                         +--------------------+-- publish(version, weights) <--------+

One *wave* = the orders of one step that go to one sampler together. Waves of a step are cut the same way every time,
so a strictly on-policy run repeats exactly. The guide takes all groups of an iteration together, so the first of them
waits for the last; references get new weights only where they follow the policy's snapshots. All waiting is on one
condition; nothing here knows Ray or torch.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from negalign_ray.config import SamplingConfig
from negalign_ray.errors import NegalignError, RoleError, ScoreError
from negalign_ray.events import Event, EventKind, Record, forget
from negalign_ray.loops.books import Books, SentWave, SlotOrder
from negalign_ray.loops.buffer import Handle, Outcome, SlotBuffer
from negalign_ray.loops.candidates import CandidateLists
from negalign_ray.loops.iteration import Filled, IterationGate
from negalign_ray.loops.orders import OrderFactory
from negalign_ray.loops.roles import Batch, Fleet
from negalign_ray.loops.schedule import SamplingSchedule
from negalign_ray.loops.state import RolloutState
from negalign_ray.records import Group, Order

log = logging.getLogger(__name__)

Wave = list[SlotOrder]


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
        references_follow: bool = False,  # the policy's snapshots, instead of staying the initial model
        wants_guide: bool = False,
        candidates: CandidateLists | None = None,  # of a method that trains on earlier rounds' answers again
        record: Record = forget,  # what happens to the roles
    ) -> None:
        self.buffer = SlotBuffer(groups_per_step=groups_per_step, capacity=config.buffer_groups)
        gate = IterationGate(config.refresh_every * groups_per_step, num_steps * groups_per_step)
        self._books = Books(self.buffer, orders, gate, candidates)
        self.counts, self.clock, self.figures = self._books.counts, self._books.clock, self._books.figures
        self.schedule = SamplingSchedule.from_config(config)
        self.sampler_version = 0
        self._fleet, self._config, self._num_steps = fleet, config, num_steps
        self._orders_per_wave, self._wants_scores, self._wants_references = (
            orders_per_wave,
            wants_scores,
            wants_references,
        )
        self._references_follow = references_follow and wants_references
        self._wants_guide = wants_guide
        self._record = record
        self._fit: tuple[int, float] | None = None  # groups that the guide is being fitted on, and since when
        self._weights: Any = None
        self._num_waves = 0
        self._resumed: RolloutState | None = None  # set until the samplers hold the version that is due
        self._changed = asyncio.Condition()
        self._sampler_locks = [asyncio.Lock() for _ in range(fleet.num_samplers)]
        self._publish_lock = asyncio.Lock()
        self._tasks: set[asyncio.Task] = set()
        self._fatal: NegalignError | None = None
        self._stopped = False
        self._started = False

    # -- what the conductor calls ------------------------------------------------------------------------------

    async def start(self) -> None:
        self._started = True
        await self._go_on()
        self._issue_steps()

    async def pull(self, step: int, *, timeout_s: float) -> Batch | None:
        """The batch of `step`, the same for every rank; None when the run was stopped before any rank had it.

        Raises TimeoutError when it is not ready in time, and the fatal error that ended the rollout, if any.
        """
        async with self._changed:
            await asyncio.wait_for(
                self._changed.wait_for(lambda: self._fatal or self._stopped or self.buffer.is_ready(step)), timeout_s
            )
        if self._fatal:
            raise self._fatal
        if self._stopped and not self.buffer.is_taken(step):  # ranks that have it wait for the others in collectives
            return None
        handles = self.buffer.take(step)
        if self._books.candidates is not None:
            self._books.candidates.remember(zip(self.buffer.prompt_ids(step), handles, strict=True))
        return Batch(step, handles)

    async def trained(self, step: int) -> None:
        self.buffer.trained(step)
        self.clock.forget_before(step)
        self._issue_steps()

    async def publish(self, version: int, weights: Any) -> None:
        """Give `weights` to every sampler, and to references that follow; what does not confirm them is replaced."""
        async with self._publish_lock:
            if version <= self.sampler_version:
                return
            self._weights = weights
            loads = [self._load(rank, version) for rank in range(self._fleet.num_samplers)]
            orders_to_come = self._books.next_step < self._num_steps or self._resumed is not None
            if self._references_follow and orders_to_come and not self._stopped:
                loads.append(self._fleet.follow(weights, version))
            try:
                seconds = await asyncio.gather(*loads)
            except NegalignError as error:
                await self._die(error)  # learners wait for a batch that these weights were for
                raise
            self.sampler_version = version
            self.clock.add(version, "weights", max(seconds))
            await self._go_on()
        self._issue_steps()
        await self._notify()

    async def wait_for_version(self, version: int, *, timeout_s: float) -> None:
        async with self._changed:
            await asyncio.wait_for(
                self._changed.wait_for(lambda: self._fatal or self.sampler_version >= version), timeout_s
            )
        if self._fatal:
            raise self._fatal

    @asynccontextmanager
    async def undisturbed(self) -> AsyncIterator[int]:
        """No sampler gets other weights inside; yields the version that all of them hold."""
        async with self._publish_lock:
            yield self.sampler_version

    def turn(self, rank: int) -> asyncio.Lock:
        """Held by whoever asks that sampler: a wave, an update of its weights, or an evaluation in between."""
        return self._sampler_locks[rank]

    async def stop(self) -> None:
        self._stopped = True
        await self._notify()

    async def fail(self, error: NegalignError) -> None:
        """End the run with an error from outside: every rank that pulls meets it."""
        await self._die(error)

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

    @property
    def fit(self) -> tuple[int, float] | None:
        """(groups, seconds so far) of the guide's fit under way, which all learners wait for; None when there is none.

        Iterations come one after another: the next one is sampled from weights that this one trains.
        """
        return None if self._fit is None else (self._fit[0], time.perf_counter() - self._fit[1])

    # -- checkpoints -------------------------------------------------------------------------------------------

    @property
    def weights(self) -> Any:
        """What was published last; None = the initial model."""
        return self._weights

    def capture(self, step: int) -> tuple[RolloutState, list[Handle]]:
        """What a resumed run goes on from after `step` optimizer steps (see Books)."""
        return self._books.capture(step)

    def restore(self, state: RolloutState, groups: Sequence[Handle]) -> None:
        """Go on from a capture, with its groups; to be called before `start`.

        Nothing is asked of a sampler before it holds the version that is due, which is published as any other.
        """
        self._books.restore(state, groups, num_samplers=self._fleet.num_samplers)
        self._num_waves = len(self._books.waves)
        self._resumed = state

    async def remembered(self) -> dict[str, Any]:
        """What the roles remember, for `fleet` of a capture."""
        return dict(self._resumed.fleet) if self._resumed else await self._fleet.remembered()

    async def _go_on(self) -> None:
        """Make again what was on its way, once every role is where it was."""
        if self._resumed is None or not self._started:
            return
        if self.sampler_version < self.schedule.due(self._resumed.step):
            return
        await self._fleet.remember(self._resumed.fleet)
        self._resumed = None
        for number in self._books.waves:
            self._spawn(self._make(number))

    # -- issuing -----------------------------------------------------------------------------------------------

    def _issue_steps(self) -> None:
        """Issue every step whose weights are there and which the buffer has room for."""
        while (
            self._started
            and not self._stopped
            and self._fatal is None
            and self._resumed is None
            and self._books.next_step < self._num_steps
            and self.sampler_version >= self.schedule.oldest_allowed(self._books.next_step)
            and self.buffer.has_room_for_step()
        ):
            wave: Wave = []
            for slot in self.buffer.slots_of(self._books.next_step):
                wave.append((slot, self._issue(slot, self._books.orders.next_order())))
            for rank, part in self._split(wave):
                self._send(SentWave(rank, tuple(part)))
            self._books.next_step += 1

    def _issue(self, slot: int, order: Order) -> Order:
        # Lists are attached here and change in `pull` alone. A strictly on-policy step is pulled before the next one is
        # issued, so such a run repeats exactly; `trained` may come before or after that.
        order = order if self._books.candidates is None else self._books.candidates.attach_to(order)
        self.buffer.issue(slot, order)
        return order

    def _split(self, wave: Wave) -> list[tuple[int, Wave]]:
        """Contiguous, near-equal parts, one per sampler (or of `orders_per_wave`, dealt out in turn)."""
        num_samplers = self._fleet.num_samplers
        size = self._orders_per_wave or -(-len(wave) // num_samplers)
        parts = [wave[start : start + size] for start in range(0, len(wave), size)]
        return [(index % num_samplers, part) for index, part in enumerate(parts)]

    def _send(self, wave: SentWave) -> None:
        number, self._num_waves = self._num_waves, self._num_waves + 1
        self._books.waves[number] = wave
        self._spawn(self._make(number))

    async def _make(self, number: int) -> None:
        wave = self._books.waves[number]
        try:
            await self._produce(wave.rank, list(wave.orders), num_failures=wave.num_failures)
        finally:
            del self._books.waves[number]

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

    async def _produce(self, rank: int, wave: Wave, *, num_failures: int = 0) -> None:
        """Sample, score, price and file a wave; `num_failures` samplers failed at it before."""
        step = self.buffer.step_of(wave[0][0])
        handles = await self._sample(rank, wave, step, num_failures)
        if handles is None:
            return
        wave, handles = self._keep_usable(rank, wave, handles, Outcome.DROPPED_EMPTY)
        if handles and self._wants_scores:
            try:
                scored = await self._fleet.score(handles)
            except ScoreError as error:
                log.warning("%s; %d groups dropped and re-ordered", error, len(wave))
                slots = self._open_slots(wave)
                self.counts["score_failures"] += len(slots)
                self._order_again(rank, slots, Outcome.DROPPED_SCORE, error)
                return
            self.clock.add(step, "score", scored.busy_s)
            self.counts["samples_gated"] += _num_samples(handles) - _num_samples(scored.handles)
            wave, handles = self._keep_usable(rank, wave, scored.handles, Outcome.DROPPED_GATE)
        wave, handles = self._still_open(wave, handles)
        if handles and self._wants_references:
            priced = await self._fleet.price(handles)
            self.clock.add(step, "price", priced.busy_s, prices=priced.num_prices, remembered=priced.num_remembered)
            handles = priced.handles
        if handles:
            self._books.failures_in_a_row = 0
        filled = [(slot, handle) for (slot, _), handle in zip(wave, handles, strict=True)]
        if self._wants_guide:
            filled = await self._guide(filled)  # of an iteration, whose steps allow one and the same version
        for slot, handle in filled:
            self.buffer.fill(slot, handle)
        stale = self.buffer.stale_slots([slot for slot, _ in filled], self.schedule.oldest_allowed(step))
        self._order_again(rank, stale, Outcome.DROPPED_STALE)
        await self._notify()

    async def _guide(self, filled: Sequence[Filled]) -> list[Filled]:
        """All groups of the iteration with their latent distances, once `filled` completes it; until then none."""
        whole = self._books.gate.add(filled)
        if not whole:
            return []
        self._fit = len(whole), time.perf_counter()
        try:
            guided = await self._fleet.guide([handle for _, handle in whole])
        finally:
            self._fit = None
        first_step = self.buffer.step_of(whole[0][0])
        self.clock.add(first_step, "guide", guided.busy_s)
        self.figures[first_step] = dict(guided.figures)
        self._books.gate.release(whole[0][0])
        return [(slot, handle) for (slot, _), handle in zip(whole, guided.handles, strict=True)]

    async def _sample(self, rank: int, wave: Wave, step: int, num_failures: int) -> Sequence[Handle] | None:
        orders = [order for _, order in wave]
        if not orders[0].requests:
            groups = [Group(order.order_id, order.prompt, order.prompt.responses) for order in orders]
            return (await self._fleet.hold(groups)).handles
        try:
            async with self._sampler_locks[rank]:
                sampled = await self._fleet.sample(rank, orders)
        except RoleError as error:
            log.warning("%s; replacing it and re-issuing %d orders", error, len(orders))
            await self._replace(error, rank)
            self.counts["reissued"] += len(wave)
            # Without the lists: if one of them is what could not be read, it must not cost every attempt.
            retries = [(slot, replace(order, earlier=None)) for slot, order in wave]
            if num_failures + 1 >= self._config.max_attempts:
                await self._die(error)
            else:
                self._send(SentWave(rank, tuple(retries), num_failures + 1))
            return None
        self.clock.add(step, "sample", sampled.busy_s, tokens=sampled.num_tokens)
        wanted = sum(len(order.requests) for order in orders)
        self.counts["samples_dropped"] += wanted - _num_samples(sampled.handles)
        return sampled.handles

    def _keep_usable(
        self, rank: int, wave: Wave, handles: Sequence[Handle], outcome: Outcome
    ) -> tuple[Wave, list[Handle]]:
        kept_wave, kept_handles, lost = [], [], []
        for (slot, order), handle in zip(wave, handles, strict=True):
            if order.requests and handle.card.num_samples < self._config.min_samples:
                lost.append((slot, order))
            else:
                kept_wave.append((slot, order))
                kept_handles.append(handle)
        self._order_again(rank, self._open_slots(lost), outcome)
        return kept_wave, kept_handles

    def _open_slots(self, wave: Wave) -> list[int]:
        """Without those whose order had ended when a resumed run made the wave again."""
        return [slot for slot, order in wave if self.buffer.waits_for(slot, order)]

    def _still_open(self, wave: Wave, handles: Sequence[Handle]) -> tuple[Wave, list[Handle]]:
        pairs = [(entry, handle) for entry, handle in zip(wave, handles, strict=True) if self.buffer.waits_for(*entry)]
        return [entry for entry, _ in pairs], [handle for _, handle in pairs]

    def _order_again(
        self, rank: int, slots: Sequence[int], outcome: Outcome, error: NegalignError | None = None
    ) -> None:
        """End the slots' orders and put others in their place, one wave of them: a sampler is slow at single prompts.

        The same prompt is tried again first; when its attempts are used up, the next prompt comes.
        """
        wave: Wave = []
        for slot in slots:
            spent = self.buffer.drop(slot, outcome)
            exhausted = spent.attempt + 1 >= self._config.max_attempts
            order = self._books.orders.next_order() if exhausted else self._books.orders.again(spent)
            wave.append((slot, self._issue(slot, order)))
        self._books.failures_in_a_row += len(wave)
        if self._books.failures_in_a_row > self._config.max_attempts * self.buffer.groups_per_step:
            reason = (
                f"{self._books.failures_in_a_row} orders in a row ended without a usable group, the last as {outcome}"
            )
            hint = error or "look at sampling.min_samples, sampling.reward_gate and sampling.max_new_tokens"
            self._spawn(self._die(RoleError(f"{reason}; {hint}", role="conductor")))
        elif wave:
            self._send(SentWave(rank, tuple(wave)))

    # -- samplers ----------------------------------------------------------------------------------------------

    async def _load(self, rank: int, version: int) -> float:
        try:
            async with self._sampler_locks[rank]:
                receipt = await self._fleet.load_weights(rank, self._weights, version)
            return receipt.seconds
        except RoleError as error:
            log.warning("%s; replacing it", error)
            await self._replace(error, rank, version)
            return 0.0

    async def _replace(self, error: RoleError, rank: int, version: int | None = None) -> None:
        self._record(Event(EventKind.FAULT, error.reason, role="sampler", rank=rank))
        self.counts["samplers_replaced"] += 1
        version = self.sampler_version if version is None else version
        async with self._sampler_locks[rank]:
            await self._fleet.replace_sampler(rank, self._weights, version)
        reason = f"a new actor has version {version}"
        self._record(Event(EventKind.REPLACE, reason, role="sampler", rank=rank, weight_version=version))

    async def _die(self, error: NegalignError) -> None:
        self._fatal = self._fatal or error
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _num_samples(handles: Sequence[Handle]) -> int:
    return sum(handle.card.num_samples for handle in handles)

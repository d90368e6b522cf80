"""How orders become groups: the life of a wave.

    send --> sample --> score --> gate --> price --> (guide) --> the slots are filled
               |          |         |                              |
               +----------+---------+--- orders end, new ones take their slots <--- too old

A *wave* is what goes to one sampler together. The guide takes all groups of an iteration together, so the first of
them waits for the last.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from negalign_ray.config import SamplingConfig
from negalign_ray.errors import LostObjectError, NegalignError, RoleError, ScoreError
from negalign_ray.loops.books import Books, SentWave, SlotOrder
from negalign_ray.loops.buffer import Handle, Outcome
from negalign_ray.loops.crew import Crew
from negalign_ray.loops.iteration import Filled
from negalign_ray.loops.roles import Fleet, StageResult
from negalign_ray.loops.schedule import SamplingSchedule
from negalign_ray.records import Group, Order

log = logging.getLogger(__name__)

Wave = list[SlotOrder]


@dataclass(frozen=True, slots=True)
class Stages:
    """What a method asks of a wave behind the samplers."""

    scores: bool = True
    references: bool = True
    guide: bool = False


class Production:
    """Belongs to the conductor's event loop. `fail` ends the run; `changed` wakes those who wait for groups."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        crew: Crew,
        books: Books,
        config: SamplingConfig,
        stages: Stages,
        fail: Callable[[NegalignError], Coroutine[Any, Any, None]],
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        self._fleet, self._crew, self._books, self._config, self._stages = fleet, crew, books, config, stages
        self._schedule = SamplingSchedule.from_config(config)
        self._fail, self._changed = fail, changed
        self._num_waves = 0
        self._tasks: set[asyncio.Task] = set()
        self.fit: tuple[int, float] | None = None  # groups that the guide is being fitted on, and since when

    def issue(self, slot: int, order: Order) -> SlotOrder:
        # Lists are attached here and change in `pull` alone. A strictly on-policy step is pulled before the next one is
        # issued, so such a run repeats exactly; `trained` may come before or after that.
        candidates = self._books.candidates
        order = order if candidates is None else candidates.attach_to(order)
        self._books.buffer.issue(slot, order)
        return slot, order

    def send(self, wave: SentWave) -> None:
        number, self._num_waves = self._num_waves, self._num_waves + 1
        self._books.waves[number] = wave
        self._spawn(self._make(number))

    def restore(self) -> None:
        """After the books have been: what comes is numbered behind what they hold."""
        self._num_waves = len(self._books.waves)

    def send_again(self) -> None:
        """All that the books of an interrupted run have on its way."""
        for number in self._books.waves:
            self._spawn(self._make(number))

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- tasks -------------------------------------------------------------------------------------------------

    def _spawn(self, coroutine: Coroutine) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._reap)

    def _reap(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            error = task.exception()
            wrapped = error if isinstance(error, NegalignError) else RoleError(repr(error), role="conductor")
            self._spawn(self._fail(wrapped))

    async def _make(self, number: int) -> None:
        wave = self._books.waves[number]
        try:
            await self._produce(wave.rank, list(wave.orders), num_failures=wave.num_failures)
        finally:
            del self._books.waves[number]

    # -- one wave ----------------------------------------------------------------------------------------------

    async def _produce(self, rank: int, wave: Wave, *, num_failures: int) -> None:
        """Sample, score, price and file a wave; `num_failures` samplers failed at it before."""
        books, buffer = self._books, self._books.buffer
        step = buffer.step_of(wave[0][0])
        handles = await self._sample(rank, wave, step, num_failures)
        if handles is None:
            return
        wave, handles = self._keep_usable(rank, wave, handles, Outcome.DROPPED_EMPTY)
        if handles and self._stages.scores:
            scored = await self._done(rank, wave, self._fleet.score(handles))
            if scored is None:
                return
            books.clock.add(step, "score", scored.busy_s)
            books.counts["samples_gated"] += _num_samples(handles) - _num_samples(scored.handles)
            wave, handles = self._keep_usable(rank, wave, scored.handles, Outcome.DROPPED_GATE)
        wave, handles = self._still_open(wave, handles)
        if handles and self._stages.references:
            priced = await self._done(rank, wave, self._fleet.price(handles))
            if priced is None:
                return
            books.clock.add(step, "price", priced.busy_s, prices=priced.num_prices, remembered=priced.num_remembered)
            handles = priced.handles
        if handles:
            books.failures_in_a_row = 0
        filled = [(slot, handle) for (slot, _), handle in zip(wave, handles, strict=True)]
        if self._stages.guide:
            filled = await self._guide(filled)  # of an iteration, whose steps allow one and the same version
        for slot, handle in filled:
            buffer.fill(slot, handle)
        stale = buffer.stale_slots([slot for slot, _ in filled], self._schedule.oldest_allowed(step))
        self._order_again(rank, stale, Outcome.DROPPED_STALE)
        await self._changed()

    async def _done(self, rank: int, wave: Wave, stage: Awaitable[StageResult]) -> StageResult | None:
        """What a stage adds to the wave's groups; None where they cannot be used, and others have been ordered."""
        try:
            return await stage
        except (ScoreError, LostObjectError) as error:
            log.warning("%s; %d groups dropped and re-ordered", error, len(wave))
            slots = self._open_slots(wave)
            outcome = Outcome.DROPPED_LOST
            if isinstance(error, ScoreError):
                self._books.counts["score_failures"] += len(slots)
                outcome = Outcome.DROPPED_SCORE
            self._order_again(rank, slots, outcome, error)
            return None

    async def _guide(self, filled: Sequence[Filled]) -> list[Filled]:
        """All groups of the iteration with their latent distances, once `filled` completes it; until then none."""
        books = self._books
        whole = books.gate.add(filled)
        if not whole:
            return []
        self.fit = len(whole), time.perf_counter()
        try:
            guided = await self._fleet.guide([handle for _, handle in whole])
        finally:
            self.fit = None
        first_step = books.buffer.step_of(whole[0][0])
        books.clock.add(first_step, "guide", guided.busy_s)
        books.figures[first_step] = dict(guided.figures)
        books.gate.release(whole[0][0])
        return [(slot, handle) for (slot, _), handle in zip(whole, guided.handles, strict=True)]

    async def _sample(self, rank: int, wave: Wave, step: int, num_failures: int) -> Sequence[Handle] | None:
        orders = [order for _, order in wave]
        if not orders[0].requests:
            groups = [Group(order.order_id, order.prompt, order.prompt.responses) for order in orders]
            return (await self._fleet.hold(groups)).handles
        try:
            sampled = await self._crew.ask(rank, lambda rank: self._fleet.sample(rank, orders))
        except RoleError as error:
            log.warning("%s; %d orders are issued again", error, len(orders))
            self._books.counts["reissued"] += len(wave)
            if num_failures + 1 >= self._config.max_attempts:
                await self._fail(error)
                return None
            if isinstance(error, LostObjectError) and self._books.candidates is not None:
                self._books.candidates.forget(order.prompt.prompt_id for order in orders)
            # Without the lists: if one of them is what could not be read, it must not cost every attempt.
            retries = tuple((slot, replace(order, earlier=None)) for slot, order in wave)
            self.send(SentWave(rank, retries, num_failures + 1))
            return None
        self._books.clock.add(step, "sample", sampled.busy_s, tokens=sampled.num_tokens)
        wanted = sum(len(order.requests) for order in orders)
        self._books.counts["samples_dropped"] += wanted - _num_samples(sampled.handles)
        return sampled.handles

    # -- orders that end and those that follow them ------------------------------------------------------------

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
        return [slot for slot, order in wave if self._books.buffer.waits_for(slot, order)]

    def _still_open(self, wave: Wave, handles: Sequence[Handle]) -> tuple[Wave, list[Handle]]:
        waits_for = self._books.buffer.waits_for
        pairs = [(entry, handle) for entry, handle in zip(wave, handles, strict=True) if waits_for(*entry)]
        return [entry for entry, _ in pairs], [handle for _, handle in pairs]

    def _order_again(
        self, rank: int, slots: Sequence[int], outcome: Outcome, error: NegalignError | None = None
    ) -> None:
        """End the slots' orders and put others in their place, one wave of them: a sampler is slow at single prompts.

        The same prompt is tried again first; when its attempts are used up, the next prompt comes.
        """
        books = self._books
        wave: Wave = []
        for slot in slots:
            spent = books.buffer.drop(slot, outcome)
            exhausted = spent.attempt + 1 >= self._config.max_attempts
            wave.append(self.issue(slot, books.orders.next_order() if exhausted else books.orders.again(spent)))
        books.failures_in_a_row += len(wave)
        if books.failures_in_a_row > self._config.max_attempts * books.buffer.groups_per_step:
            reason = f"{books.failures_in_a_row} orders in a row ended without a usable group, the last as {outcome}"
            hint = error or "look at sampling.min_samples, sampling.reward_gate and sampling.max_new_tokens"
            self._spawn(self._fail(RoleError(f"{reason}; {hint}", role="conductor")))
        elif wave:
            self.send(SentWave(rank, tuple(wave)))


def _num_samples(handles: Sequence[Handle]) -> int:
    return sum(handle.card.num_samples for handle in handles)

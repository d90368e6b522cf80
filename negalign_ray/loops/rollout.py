"""The conductor's loop: keeps the buffer filled, hands out batches, and moves weights to the samplers.

    cursor --orders--> sample --> score --> price --> (guide) --> buffer --pull--> learners
                         ^                    ^                                      |
                         +--------------------+-- publish(version, weights) <--------+

What happens to the orders of a wave stands in production.py, who the samplers are in crew.py. Waves of a step are cut
the same way every time, so a strictly on-policy run repeats exactly. References get new weights only where they follow
the policy's snapshots. All waiting is on one condition; nothing here knows Ray or torch.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from negalign_ray.config import SamplingConfig
from negalign_ray.errors import NegalignError
from negalign_ray.events import Record, forget
from negalign_ray.loops.books import Books, SentWave
from negalign_ray.loops.buffer import Handle, SlotBuffer
from negalign_ray.loops.candidates import CandidateLists
from negalign_ray.loops.crew import Crew, Held
from negalign_ray.loops.iteration import IterationGate
from negalign_ray.loops.orders import OrderFactory
from negalign_ray.loops.production import Production, Stages, Wave
from negalign_ray.loops.roles import Batch, Fleet, Offer
from negalign_ray.loops.schedule import SamplingSchedule
from negalign_ray.loops.state import RolloutState

log = logging.getLogger(__name__)


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
        samplers_sleep: bool = False,  # from the moment a step has all its groups until the next weights come
        candidates: CandidateLists | None = None,  # of a method that trains on earlier rounds' answers again
        record: Record = forget,  # what happens to the samplers
    ) -> None:
        self.buffer = SlotBuffer(groups_per_step=groups_per_step, capacity=config.buffer_groups)
        gate = IterationGate(config.refresh_every * groups_per_step, num_steps * groups_per_step)
        self._books = Books(self.buffer, orders, gate, candidates)
        self.counts, self.clock, self.figures = self._books.counts, self._books.clock, self._books.figures
        self.schedule = SamplingSchedule.from_config(config)
        self.crew = Crew(fleet, counts=self.counts, record=record)
        self._fleet, self._num_steps, self._orders_per_wave = fleet, num_steps, orders_per_wave
        self._references_follow = references_follow and wants_references
        self._samplers_sleep, self._going_to_sleep = samplers_sleep, asyncio.Lock()
        self._production = Production(
            fleet=fleet,
            crew=self.crew,
            books=self._books,
            config=config,
            stages=Stages(wants_scores, wants_references, wants_guide),
            fail=self.fail,
            changed=self._notify,
        )
        self._resumed: RolloutState | None = None  # set until the samplers hold the version that is due
        self._changed = asyncio.Condition()
        self._fatal: NegalignError | None = None
        self._stopped = False
        self._started = False
        self._outlives_learners = False

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
        is_first = not self.buffer.is_taken(step)
        handles = self.buffer.take(step)  # from now on all ranks get it, stopped or not
        if self._samplers_sleep:
            async with self._going_to_sleep:  # no rank trains before all samplers have given their memory back
                if is_first:
                    await self.crew.rest()
        if self._books.candidates is not None:
            self._books.candidates.remember(zip(self.buffer.prompt_ids(step), handles, strict=True))
        return Batch(step, handles)

    async def trained(self, step: int) -> None:
        self.buffer.trained(step)
        self.clock.forget_before(step)
        self._issue_steps()

    async def publish(self, version: int, weights: Any, offer: Offer | None = None) -> None:
        """Give `weights` to every sampler, and to references that follow; what does not confirm them is replaced.

        With an `offer` samplers get them that way, as far as they can.
        """
        async with self.crew.updating:
            if version <= self.sampler_version:
                return
            held = Held(weights, version)
            loads = [self.crew.load(held, offer)]
            orders_to_come = self._books.next_step < self._num_steps or self._resumed is not None
            if self._references_follow and orders_to_come and not self._stopped:
                loads.append(self._fleet.follow(weights, version))
            try:
                seconds = await asyncio.gather(*loads)
            except NegalignError as error:
                await self.fail(error)  # learners wait for a batch that these weights were for
                raise
            self.crew.held = held
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
        async with self.crew.updating:
            yield self.sampler_version

    async def stop(self) -> None:
        self._stopped = True
        await self._notify()

    async def outlive_learners(self, copy: Callable[[Any], Awaitable[Any]] | None) -> None:
        """They have trained, and end: samplers, which may still be asked and replaced, hold a `copy` of the weights;
        None = nobody asks them any more. Nothing that fails in making groups ends the run from now on."""
        self._outlives_learners = True
        if copy is not None:
            await self.crew.keep(copy)

    async def fail(self, error: NegalignError) -> None:
        """End the run with an error: every rank that pulls meets it."""
        if self._outlives_learners:
            log.warning("%s; nobody needs these groups any more", error)
            return
        self._fatal = self._fatal or error
        await self._notify()

    async def close(self) -> None:
        """End what is open: every order has an outcome afterwards."""
        self._stopped = True
        await self._production.close()
        self.buffer.give_up()
        await self._notify()

    @property
    def sampler_version(self) -> int:
        """What every sampler that serves has confirmed."""
        return self.crew.held.version

    @property
    def fatal(self) -> NegalignError | None:
        return self._fatal

    @property
    def fit(self) -> tuple[int, float] | None:
        """(groups, seconds so far) of the guide's fit under way, which all learners wait for; None when there is none.

        Iterations come one after another: the next one is sampled from weights that this one trains.
        """
        fit = self._production.fit
        return None if fit is None else (fit[0], time.perf_counter() - fit[1])

    # -- checkpoints -------------------------------------------------------------------------------------------

    @property
    def weights(self) -> Any:
        """What was published last; None = the initial model."""
        return self.crew.held.weights

    def capture(self, step: int) -> tuple[RolloutState, list[Handle]]:
        """What a resumed run goes on from after `step` optimizer steps (see Books)."""
        return self._books.capture(step)

    def restore(self, state: RolloutState, groups: Sequence[Handle]) -> None:
        """Go on from a capture, with its groups; to be called before `start`.

        Nothing is asked of a sampler before it holds the version that is due, which is published as any other.
        """
        self._books.restore(state, groups)
        self._production.restore()
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
        self._production.send_again()

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
                wave.append(self._production.issue(slot, self._books.orders.next_order()))
            for rank, part in self._split(wave):
                self._production.send(SentWave(rank, tuple(part)))
            self._books.next_step += 1

    def _split(self, wave: Wave) -> list[tuple[int, Wave]]:
        """Contiguous, near-equal parts, one per sampler (or of `orders_per_wave`, dealt out in turn)."""
        ranks = self.crew.ranks
        size = self._orders_per_wave or -(-len(wave) // len(ranks))
        parts = [wave[start : start + size] for start in range(0, len(wave), size)]
        return [(ranks[index % len(ranks)], part) for index, part in enumerate(parts)]

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

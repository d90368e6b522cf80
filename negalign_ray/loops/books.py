"""What the rollout loop must not forget: everything that decides which groups the next steps will train on.

books --capture--> RolloutState (JSON) and the groups it refers to --restore--> the same books in another process
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from negalign_ray.loops.buffer import Handle, SlotBuffer
from negalign_ray.loops.candidates import CandidateLists
from negalign_ray.loops.iteration import IterationGate
from negalign_ray.loops.orders import OrderFactory
from negalign_ray.loops.stages import StageClock
from negalign_ray.loops.state import GroupTable, OrderState, RolloutState, SlotState, WaveState
from negalign_ray.records import Order

SlotOrder = tuple[int, Order]


@dataclass(frozen=True, slots=True)
class SentWave:
    """A wave on its way, as it was sent: some of its orders may have ended meanwhile."""

    rank: int
    orders: tuple[SlotOrder, ...]
    num_failures: int = 0  # samplers that failed at it before


@dataclass
class Books:
    """Belongs to the conductor's event loop; every moment between two awaits is one at which it may be captured."""

    buffer: SlotBuffer
    orders: OrderFactory
    gate: IterationGate
    candidates: CandidateLists | None
    clock: StageClock = field(default_factory=StageClock)
    counts: Counter[str] = field(default_factory=Counter)
    figures: dict[int, dict[str, float]] = field(default_factory=dict)  # of the guide, by first step of an iteration
    next_step: int = 0  # the first one not yet issued
    failures_in_a_row: int = 0
    waves: dict[int, SentWave] = field(default_factory=dict)  # on their way, by number

    def capture(self, step: int) -> tuple[RolloutState, list[Handle]]:
        """All of this after `step` optimizer steps, and the groups that it refers to.

        Batches that ranks have already pulled count as not pulled. `fleet` is left to the caller, who can wait for it.
        """
        table = GroupTable()
        made_again = {
            slot for wave in self.waves.values() for slot, order in wave.orders if self.buffer.waits_for(slot, order)
        }
        prompts_drawn, next_order_id = self.orders.position
        ledger = self.buffer.ledger
        state = RolloutState(
            step=step,
            next_step=self.next_step,
            prompts_drawn=prompts_drawn,
            next_order_id=next_order_id,
            orders_issued=ledger.issued,
            outcomes={str(outcome): count for outcome, count in ledger.outcomes.items()},
            slots=tuple(
                SlotState(slot, table.order(order), None if handle is None else table.place_of(handle))
                for slot, order, handle in self.buffer.entries()
            ),
            waves=tuple(
                WaveState(wave.rank, wave.num_failures, tuple((slot, table.order(o)) for slot, o in wave.orders))
                for wave in self.waves.values()
            ),
            gathered=tuple(
                (slot, table.place_of(handle)) for slot, handle in self.gate.entries() if slot not in made_again
            ),
            candidates=tuple(
                (prompt_id, table.place_of(handle))
                for prompt_id, handle in (self.candidates.entries() if self.candidates else ())
            ),
            counts=dict(self.counts),
            failures_in_a_row=self.failures_in_a_row,
            figures={first: values for first, values in self.figures.items() if first >= step},
            clock=tuple(entry for entry in self.clock.entries() if self.buffer.is_ready(entry[0])),
        )
        return state, table.handles

    def restore(self, state: RolloutState, groups: Sequence[Handle]) -> None:
        """Write a capture into new books. Its waves are to be sent again (of ranks that are gone, see Crew.ask)."""

        def order_of(saved: OrderState) -> Order:
            order = self.orders.rewrite(saved.order_id, saved.prompt_id, saved.attempt)
            return order if saved.earlier is None else replace(order, earlier=groups[saved.earlier])

        self.orders.seek(state.prompts_drawn, state.next_order_id)
        self.next_step, self.failures_in_a_row = state.next_step, state.failures_in_a_row
        for each in state.slots:
            self.buffer.restore(each.slot, order_of(each.order), None if each.group is None else groups[each.group])
        open_ids = [each.order.order_id for each in state.slots]
        self.buffer.ledger.restore(issued=state.orders_issued, outcomes=state.outcomes, open_ids=open_ids)
        for slot, place in state.gathered:
            self.gate.add([(slot, groups[place])])
        if self.candidates is not None:
            self.candidates.remember((prompt_id, groups[place]) for prompt_id, place in state.candidates)
        self.counts.update(state.counts)
        self.figures.update(state.figures)
        for entry in state.clock:
            self.clock.restore(*entry)
        for number, wave in enumerate(state.waves):
            orders = tuple((slot, order_of(order)) for slot, order in wave.orders)
            self.waves[number] = SentWave(wave.rank, orders, wave.num_failures)

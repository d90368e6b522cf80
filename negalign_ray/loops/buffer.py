"""The buffer between rollout and training: numbered slots, each filled by exactly one trained group.

Step s owns the slots [s * G, (s + 1) * G), G = groups per step. A slot keeps its place when its order is dropped or
fails, and a replacement order fills it. So a batch is the same whichever sampler was faster: runs repeat, and short
answers get no head start over long ones.

    order --issue--> WAITING --fill--> READY --take--> TAKEN --trained--> gone
                        ^ |                |
                        +-+---- drop ------+        (the order ends; the slot waits for a new one)
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from negalign_ray.records import GroupCard, Order


class Outcome(StrEnum):
    """How an order ended. Every order ends exactly once."""

    TRAINED = "trained"
    DROPPED_STALE = "dropped_stale"  # older than the schedule allows at its step
    DROPPED_EMPTY = "dropped_empty"  # too few usable samples: empty or duplicate answers
    DROPPED_GATE = "dropped_gate"  # too few samples passed the reward gate
    DROPPED_SCORE = "dropped_score"  # a reward head failed for good
    DROPPED_LOST = "dropped_lost"  # gone with the node that held the group
    FAILED = "failed"  # out of attempts, or given up when the run stopped


@dataclass(frozen=True, slots=True)
class Handle:
    """A group whose payload stays in the object store (`ref`), with what the conductor knows of it."""

    ref: Any
    card: GroupCard


class OrderLedger:
    """Counts orders; refuses to end one twice or to end one that was never issued."""

    def __init__(self) -> None:
        self.issued = 0
        self.outcomes: Counter[Outcome] = Counter()
        self._open: set[int] = set()

    def issue(self, order_id: int) -> None:
        assert order_id not in self._open, f"order {order_id} issued twice"
        self._open.add(order_id)
        self.issued += 1

    def end(self, order_id: int, outcome: Outcome) -> None:
        assert order_id in self._open, f"order {order_id} ended twice or was never issued ({outcome})"
        self._open.remove(order_id)
        self.outcomes[outcome] += 1

    def restore(self, *, issued: int, outcomes: Mapping[str, int], open_ids: Iterable[int]) -> None:
        self.issued, self._open = issued, set(open_ids)
        self.outcomes = Counter({Outcome(name): count for name, count in outcomes.items()})

    @property
    def open_ids(self) -> frozenset[int]:
        return frozenset(self._open)


@dataclass(slots=True)
class _Slot:
    order: Order | None = None
    handle: Handle | None = None
    taken: bool = False


class SlotBuffer:
    """Bounded, in training order. Not thread-safe: it belongs to the conductor's event loop."""

    def __init__(self, *, groups_per_step: int, capacity: int) -> None:
        assert capacity >= groups_per_step, "the configuration check lets no smaller buffer through"
        self.groups_per_step = groups_per_step
        self.capacity = capacity
        self.ledger = OrderLedger()
        self._slots: dict[int, _Slot] = {}
        self._num_ready: Counter[int] = Counter()  # step -> filled slots: asked at every change, by every rank

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def num_ready(self) -> int:
        return self._num_ready.total()

    @property
    def nothing_under_way(self) -> bool:
        """Every order has brought its group."""
        return self.num_ready == len(self)

    def has_room_for_step(self) -> bool:
        return len(self._slots) + self.groups_per_step <= self.capacity

    def slots_of(self, step: int) -> range:
        return range(step * self.groups_per_step, (step + 1) * self.groups_per_step)

    def step_of(self, slot: int) -> int:
        return slot // self.groups_per_step

    def issue(self, slot: int, order: Order) -> None:
        entry = self._slots.setdefault(slot, _Slot())
        assert entry.order is None, f"slot {slot} already has order {entry.order}"
        entry.order = order
        self.ledger.issue(order.order_id)

    def fill(self, slot: int, handle: Handle) -> None:
        entry = self._slots[slot]
        assert entry.order is not None, f"slot {slot} waits for no order"
        assert entry.order.order_id == handle.card.order_id, f"slot {slot}: wrong order"
        assert entry.handle is None, f"slot {slot} is filled already"
        entry.handle = handle
        self._num_ready[self.step_of(slot)] += 1

    def drop(self, slot: int, outcome: Outcome) -> Order:
        """End the slot's order and leave the slot waiting for a new one; returns the order that ended."""
        entry = self._slots[slot]
        assert entry.order is not None, f"slot {slot} has nothing to drop"
        assert not entry.taken, f"slot {slot} is being trained on"
        if entry.handle is not None:
            self._num_ready[self.step_of(slot)] -= 1
        order, entry.order, entry.handle = entry.order, None, None
        self.ledger.end(order.order_id, outcome)
        return order

    def stale_slots(self, slots: Iterable[int], oldest_allowed: int) -> list[int]:
        """Those of the filled `slots` that were written by a version older than allowed."""
        versions = ((slot, handle.card.weight_version) for slot in slots if (handle := self._slots[slot].handle))
        return [slot for slot, version in versions if version is not None and version < oldest_allowed]

    def is_ready(self, step: int) -> bool:
        return self._num_ready[step] == self.groups_per_step

    def take(self, step: int) -> tuple[Handle, ...]:
        """The batch of `step` in slot order. May be called again (every rank asks) until the step is trained."""
        handles = tuple(handle for _, handle in self._ready(step))
        assert len(handles) == self.groups_per_step, f"step {step} is not ready"
        for slot in self.slots_of(step):
            self._slots[slot].taken = True
        return handles

    def entries(self) -> Iterator[tuple[int, Order, Handle | None]]:
        """(slot, order, its group if it is there) of every slot, in order."""
        for slot in sorted(self._slots):
            entry = self._slots[slot]
            assert entry.order is not None, "a dropped order is replaced at once"
            yield slot, entry.order, entry.handle

    def restore(self, slot: int, order: Order, handle: Handle | None) -> None:
        """A slot as `entries` told it; no rank has it yet. The ledger is restored apart."""
        self._slots[slot] = _Slot(order, handle)
        if handle is not None:
            self._num_ready[self.step_of(slot)] += 1

    def waits_for(self, slot: int, order: Order) -> bool:
        """Whether `order` has neither ended nor brought its group."""
        entry = self._slots.get(slot)
        return (
            entry is not None
            and entry.order is not None
            and entry.order.order_id == order.order_id
            and entry.handle is None
        )

    def is_taken(self, step: int) -> bool:
        """Whether a rank has the batch of `step` already."""
        return any(slot in self._slots and self._slots[slot].taken for slot in self.slots_of(step))

    def prompt_ids(self, step: int) -> list[int]:
        """Of the batch of `step`, in slot order."""
        return [order.prompt.prompt_id for slot in self.slots_of(step) if (order := self._slots[slot].order)]

    def trained(self, step: int) -> None:
        for slot in self.slots_of(step):
            entry = self._slots.pop(slot)
            assert entry.taken, f"slot {slot} was trained but never taken"
            assert entry.order is not None, f"slot {slot} was taken without an order"
            self.ledger.end(entry.order.order_id, Outcome.TRAINED)
        del self._num_ready[step]

    def give_up(self) -> None:
        """End every open order as failed; the run is over."""
        for entry in self._slots.values():
            if entry.order is not None:
                self.ledger.end(entry.order.order_id, Outcome.FAILED)
        self._slots.clear()
        self._num_ready.clear()

    def _ready(self, step: int) -> Iterator[tuple[int, Handle]]:
        for slot in self.slots_of(step):
            entry = self._slots.get(slot)
            if entry is not None and entry.handle is not None:
                yield slot, entry.handle

"""Collects the groups of one iteration of self-play: the slot that completes it releases them all.

Iteration i owns the slots [i * S, (i + 1) * S), S = slots per iteration; the last one may be shorter.
"""

from collections.abc import Iterable, Iterator

from negalign_ray.loops.buffer import Handle

Filled = tuple[int, Handle]  # slot, its finished group


class IterationGate:
    """Not thread-safe: it belongs to the conductor's event loop."""

    def __init__(self, slots_per_iteration: int, num_slots: int) -> None:
        self._size, self._num_slots = slots_per_iteration, num_slots
        self._waiting: dict[int, dict[int, Handle]] = {}  # iteration -> slot -> group

    def add(self, filled: Iterable[Filled]) -> list[Filled]:
        """The whole iteration in slot order when `filled` completes it, else []. All of `filled` is of one iteration.

        3 slots an iteration: add 1; add 0; add 2 -> [0, 1, 2]. They stay here until they are released.
        """
        for slot, handle in filled:
            iteration = slot // self._size
            waiting = self._waiting.setdefault(iteration, {})
            assert slot not in waiting, f"slot {slot} came twice"
            waiting[slot] = handle
            if len(waiting) == self._slots_of(iteration):
                return sorted(waiting.items())
        return []

    def release(self, slot: int) -> None:
        """The iteration of `slot` has gone on."""
        del self._waiting[slot // self._size]

    def entries(self) -> Iterator[Filled]:
        for waiting in self._waiting.values():
            yield from sorted(waiting.items())

    def _slots_of(self, iteration: int) -> int:
        return min(self._size, self._num_slots - iteration * self._size)

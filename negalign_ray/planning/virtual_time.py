"""An asyncio event loop whose clock jumps: when nothing is ready to run, it is at once the time of the next timer.

So `await asyncio.sleep(3600)` takes no time, and every deadline, lock and condition of the real loops works as it is.
Ties are settled by the order in which timers were set, so a simulation repeats exactly.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
RESOLUTION_S = 1e-6  # timers may fire this much early


class DeadlockError(RuntimeError):
    """Every task waits and no timer is set: nothing can ever happen again."""


class _Clock(selectors.SelectSelector):
    """Stands where the loop waits for files. There are none but the pipe by which other threads would wake it, and
    there are no other threads; so it moves the time on instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list:
        if timeout is None:
            raise DeadlockError("every task waits and no timer is set")
        self.now_s += timeout
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Clock()
        super().__init__(self._virtual)
        # A timer fires when it is due within this. The default of a nanosecond is below the rounding of a clock that
        # shows weeks, and a timer due "now" would never fire.
        self._clock_resolution = RESOLUTION_S

    def time(self) -> float:
        return self._virtual.now_s


def run_in_virtual_time(work: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`. DeadlockError when everything waits for something that cannot come."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)


def now_s() -> float:
    """Seconds since the simulation began."""
    return asyncio.get_running_loop().time()

"""What actors compute with, shared by those that are busy: the cores of a node, or one GPU.

Processor sharing: as long as the busy ones ask for no more than there is, each runs at full speed; else all are slowed
by the same factor.

    2 cores; A wants 2 threads for 6 s, B wants 2 threads for 2 s, both from time 0
    both at half speed until B is done at 4 s; A has 4 s of work left and ends at 8 s
"""

import asyncio
import math
from dataclasses import dataclass

from negalign_ray.planning.virtual_time import RESOLUTION_S, now_s

DONE_S = 2 * RESOLUTION_S  # what rounding may leave of a job


@dataclass(eq=False, slots=True)
class _Job:
    left_s: float  # at full speed
    threads: float
    done: asyncio.Event


class SharedCompute:
    def __init__(self, capacity: float) -> None:
        self._capacity = capacity
        self._jobs: list[_Job] = []
        self._since_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def work(self, seconds: float, *, threads: float) -> float:
        """Returns after what takes `seconds` alone; the result is how long it took."""
        started_s = now_s()
        if seconds > 0:
            self._settle()
            job = _Job(seconds, min(threads, self._capacity), asyncio.Event())
            self._jobs.append(job)
            self._wake_at_next_end()
            await job.done.wait()
        return now_s() - started_s

    def _speed(self) -> float:
        return min(1.0, self._capacity / max(DONE_S, sum(job.threads for job in self._jobs)))

    def _settle(self) -> None:
        """Take what was done since the last change off every job."""
        elapsed_s, self._since_s = now_s() - self._since_s, now_s()
        if not self._jobs:
            return
        done_s = elapsed_s * self._speed()
        for job in self._jobs:
            job.left_s -= done_s

    def _wake_at_next_end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        shortest_s = min((job.left_s for job in self._jobs), default=math.inf)
        if self._jobs:
            delay_s = max(0.0, shortest_s) / self._speed()
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._end_what_is_done)

    def _end_what_is_done(self) -> None:
        self._settle()
        for job in [job for job in self._jobs if job.left_s <= DONE_S]:
            self._jobs.remove(job)
            job.done.set()
        self._wake_at_next_end()

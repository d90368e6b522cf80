"""Simulated time: hours pass in a moment, in order; cores are shared by those that are busy."""

import asyncio
import time

import pytest

from negalign_ray.planning.compute import SharedCompute
from negalign_ray.planning.virtual_time import DeadlockError, now_s, run_in_virtual_time


def test_a_million_seconds_pass_at_once():
    async def scenario():
        await asyncio.sleep(1e6)
        return now_s()

    started = time.perf_counter()
    assert run_in_virtual_time(scenario()) == pytest.approx(1e6)
    assert time.perf_counter() - started < 5


def test_timers_fire_in_order_and_equal_ones_as_they_were_set():
    async def scenario():
        seen = []

        async def wait(name: str, seconds: float):
            await asyncio.sleep(seconds)
            seen.append((name, now_s()))

        await asyncio.gather(wait("c", 3), wait("a", 1), wait("b", 1))
        return seen

    assert run_in_virtual_time(scenario()) == [("a", 1.0), ("b", 1.0), ("c", 3.0)]


def test_deadlines_work_in_simulated_time():
    async def scenario():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(100), 30)
        return now_s()

    assert run_in_virtual_time(scenario()) == 30


def test_waiting_for_what_cannot_come_is_told_instead_of_hanging():
    async def scenario():
        await asyncio.Event().wait()

    with pytest.raises(DeadlockError):
        run_in_virtual_time(scenario())


def finish_times(capacity: float, jobs: list[tuple[float, float, float]]) -> list[float]:
    """(start, seconds alone, threads) -> when each was done."""

    async def scenario():
        compute = SharedCompute(capacity)

        async def job(start_s: float, seconds: float, threads: float) -> float:
            await asyncio.sleep(start_s)
            await compute.work(seconds, threads=threads)
            return now_s()

        return await asyncio.gather(*(job(*arguments) for arguments in jobs))

    return run_in_virtual_time(scenario())


@pytest.mark.parametrize(
    ("capacity", "jobs", "expected"),
    [
        (2, [(0, 6, 1), (0, 2, 1)], [6, 2]),  # a core each
        (2, [(0, 6, 2), (0, 2, 2)], [8, 4]),  # half speed until 4; the other has 4 left
        (2, [(0, 4, 2), (1, 1, 2)], [5, 3]),  # at 1: 3 and 1 left, half speed; at 3: 2 and 0; at 5: 0
        (2, [(0, 3, 8)], [3]),  # more threads than cores: its time alone was measured on these cores
        (3, [(0, 2, 2), (0, 2, 2)], [8 / 3, 8 / 3]),  # 4 threads on 3 cores
        (1, [(0, 0, 1)], [0]),
    ],
)
def test_busy_actors_slow_each_other_only_where_cores_run_out(capacity, jobs, expected):
    assert finish_times(capacity, jobs) == pytest.approx(expected)


def test_a_job_started_late_in_a_long_simulation_still_ends():
    assert finish_times(1, [(3e7, 0.1, 1), (3e7, 0.2, 1)]) == pytest.approx([3e7 + 0.2, 3e7 + 0.3])

"""What learner ranks are told when they are done: the same for all of them, whatever comes in between."""

import asyncio
from typing import Any

import pytest

from negalign_ray.actors.conductor import Conductor
from negalign_ray.settings import load_config

STEPS = 10


class FakeRollout:
    async def stop(self) -> None: ...


def after(num_steps: int) -> Any:
    """A conductor after so many steps of a run, without its roles."""
    made = object.__new__(Conductor.__ray_metadata__.modified_class)
    made._config = load_config(preset="quickstart", overrides=[f"learners.steps={STEPS}"])
    made._stepped, made._step, made._firings, made._rollout = asyncio.Condition(), num_steps, [], FakeRollout()
    made._starts_anew, made._is_decided, made._is_stopping = False, False, False
    return made


@pytest.mark.parametrize(
    ("num_steps", "is_stopped", "starts_anew"), [(4, False, True), (4, True, False), (STEPS, False, False)]
)
def test_a_group_starts_anew_unless_the_run_is_to_end(num_steps, is_stopped, starts_anew):
    async def end() -> bool:
        conductor = after(num_steps)
        await conductor.start_anew()
        if is_stopped:
            await conductor.stop()
        return (await conductor.ending(num_steps)).starts_anew

    assert asyncio.run(end()) is starts_anew


def test_all_ranks_are_told_the_same_though_a_stop_comes_in_between():
    async def end() -> list[bool]:
        conductor = after(4)
        await conductor.start_anew()
        first = await conductor.ending(4)
        await conductor.stop()
        return [first.starts_anew, (await conductor.ending(4)).starts_anew]

    assert asyncio.run(end()) == [True, True]


def test_ranks_that_have_ended_by_themselves_are_not_asked_to_start_anew():
    async def end() -> list[bool]:
        conductor = after(4)
        first = await conductor.ending(4)
        await conductor.start_anew()
        return [first.starts_anew, (await conductor.ending(4)).starts_anew]

    assert asyncio.run(end()) == [False, False]

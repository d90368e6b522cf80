"""Who is named when learner ranks fail together; the actors here only give, or do not give, a sign of life."""

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from ray.exceptions import RayActorError

from negalign_ray.actors.roster import LearnerRoster, find_dead
from negalign_ray.errors import RoleError
from negalign_ray.events import Event
from negalign_ray.loops.watchdog import ActivityBook

DEATH = "The actor died unexpectedly before finishing this task.\nThe actor is dead because its node has died. Id 1"
BROKEN = RoleError("RuntimeError('Connection closed by peer')", role="learner", rank=0)


def actor(future: Future) -> SimpleNamespace:
    return SimpleNamespace(__ray_ready__=SimpleNamespace(remote=lambda: SimpleNamespace(future=lambda: future)))


def alive() -> SimpleNamespace:
    future: Future = Future()
    future.set_result(True)
    return actor(future)


def dead() -> SimpleNamespace:
    future: Future = Future()
    future.set_exception(RayActorError("id", DEATH))
    return actor(future)


@pytest.fixture
def seen() -> list[Event]:
    return []


@pytest.fixture
def roster(seen) -> LearnerRoster:
    return LearnerRoster(ActivityBook(), record=seen.append)


def test_a_rank_whose_process_died_is_named_by_the_others_who_only_met_the_consequences(roster, seen):
    for rank, process in enumerate([alive(), dead(), alive()]):
        roster.join(rank, process)
    asyncio.run(roster.failed(BROKEN, 0))
    assert str(roster.error).startswith(
        "learner[1]: The actor died unexpectedly before finishing this task: its node has died;"
    )
    assert [(event.role, event.rank) for event in seen] == [("learner", 1)]


def test_while_all_live_the_first_one_to_fail_has_the_word(roster, seen):
    for rank in range(2):
        roster.join(rank, alive())
    asyncio.run(roster.failed(BROKEN, 0))
    asyncio.run(roster.failed(RoleError("ValueError('later')", role="learner", rank=1), 1))
    assert roster.error is BROKEN
    assert len(seen) == 1


def test_a_rank_that_gives_no_sign_is_not_taken_for_dead():
    assert asyncio.run(find_dead({0: actor(Future()), 1: alive()}, deadline_s=0.01)) == []

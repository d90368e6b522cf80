"""A team is brought to the number wanted in the background; what fails is tried again later and ends nothing."""

import asyncio
from collections.abc import Callable

from negalign_ray.errors import PlacementError
from negalign_ray.events import Event, EventKind
from negalign_ray.loops import scaling
from negalign_ray.loops.scaling import Scaler


class FakeTeam:
    """`fails` holds the ranks that do not come up."""

    def __init__(self, *ranks: int, fails: tuple[int, ...] = ()) -> None:
        self.ranks = list(ranks)
        self.fails = set(fails)
        self.moves: list[str] = []
        self.hold: asyncio.Event | None = None

    async def join(self, rank: int) -> None:
        self.moves.append(f"join {rank}")
        await asyncio.sleep(0)
        if self.hold is not None:
            await self.hold.wait()
        if rank in self.fails:
            raise PlacementError("no place for 1 of 1 scorer bundle(s)")
        self.ranks = sorted([*self.ranks, rank])

    async def leave(self, rank: int) -> None:
        self.moves.append(f"leave {rank}")
        self.ranks.remove(rank)
        await asyncio.sleep(0)


def scale(team: FakeTeam, *numbers: int, then: Callable[[Scaler], None] = lambda scaler: None) -> list[Event]:
    """What is recorded while the team is brought to one number after the other."""
    events: list[Event] = []

    async def scenario() -> None:
        scaler = Scaler("scorer", team, record=events.append)
        for number in numbers:
            scaler.want(number, "asked for")
            await asyncio.sleep(0.01)
        then(scaler)
        await asyncio.sleep(0.01)
        await scaler.close()

    asyncio.run(scenario())
    return events


def test_new_ones_take_the_smallest_free_ranks_and_the_highest_leave():
    team = FakeTeam(0, 2)
    scale(team, 4)
    assert (team.ranks, team.moves) == ([0, 1, 2, 3], ["join 1", "join 3"])
    scale(team, 1)
    assert (team.ranks, team.moves[2:]) == ([0], ["leave 1", "leave 2", "leave 3"])


def test_every_decision_and_what_became_of_it_is_recorded():
    events = scale(FakeTeam(0), 2)
    assert {(event.kind, event.role) for event in events} == {(EventKind.SCALE, "scorer")}
    assert events[0].reason == "scorers: 1 -> 2 (asked for)"
    assert events[0].rank is None
    assert events[1].rank == 1
    assert events[1].reason.startswith("joined after 0.")
    assert events[1].reason.endswith("; 2 serve")


def test_the_number_already_there_moves_nobody():
    team = FakeTeam(0, 1)
    scale(team, 2)
    assert team.moves == []


def test_another_wish_during_a_start_counts_when_the_start_is_over():
    async def scenario() -> None:
        team = FakeTeam(0)
        team.hold = asyncio.Event()
        scaler = Scaler("scorer", team, record=lambda event: None)
        scaler.want(3, "asked for")
        await asyncio.sleep(0.01)
        scaler.want(1, "asked for")
        team.hold.set()
        await asyncio.sleep(0.01)
        assert (team.ranks, team.moves) == ([0], ["join 1", "join 2", "leave 1", "leave 2"])

    asyncio.run(scenario())


def test_one_that_cannot_start_does_not_keep_another_from_joining_and_is_not_tried_again_at_once():
    team = FakeTeam(0, fails=(1,))
    events = scale(team, 3, then=lambda scaler: scaler.settle())
    assert (team.ranks, team.moves) == ([0, 2], ["join 1", "join 2"])
    failed = next(event for event in events if event.rank == 1)
    assert failed.reason == "could not be started; next try in 60 s: no place for 1 of 1 scorer bundle(s)"


def test_what_failed_is_tried_again_after_a_pause():
    team = FakeTeam(0, fails=(1,))

    def later(scaler: Scaler) -> None:
        assert scaler._pause_s == 2 * scaling.FIRST_PAUSE_S, "the next pause is longer"
        scaler._not_before_s = 0.0  # the pause is over
        team.fails.clear()
        scaler.settle()

    scale(team, 2, then=later)
    assert (team.ranks, team.moves) == ([0, 1], ["join 1", "join 1"])


def test_an_actor_that_was_lost_meanwhile_is_made_up_for():
    team = FakeTeam(0, 1)

    def lose(scaler: Scaler) -> None:
        team.ranks.remove(0)
        scaler.settle()

    scale(team, 2, then=lose)
    assert team.ranks == [0, 1]

"""Who may scale what, what they are told, and how the autoscaler is fed; teams are fakes."""

import asyncio
from collections.abc import Mapping

import pytest

from negalign_ray.actors.elastic import Elastic, load_of
from negalign_ray.errors import ConfigError, PlacementError
from negalign_ray.events import Event, Record, forget
from negalign_ray.loops.autoscale import Load
from negalign_ray.settings import load_config
from tests.loops.test_scaling import FakeTeam

AUTOSCALE = "samplers.autoscale={min: 1, max: 3, patience: 1, cooldown: 0}"
STARVED = {"learner/step_s": 10.0, "learner/pull_wait_s": 5.0, "sampler/busy_s": 10.0}


class Cluster:
    """With room for `room` more actors at any time."""

    def __init__(self, room: int = 9) -> None:
        self.room = room
        self.asked: list[tuple] = []

    def require_room(self, name: str, num_more: int, numbers: Mapping[str, int]) -> None:
        self.asked.append((name, num_more, dict(numbers)))
        if num_more > self.room:
            raise PlacementError(f"no place for {num_more - self.room} of {num_more} sampler bundle(s)")


def make(*overrides: str, cluster: Cluster | None = None, record: Record = forget) -> Elastic:
    teams = {"samplers": FakeTeam(0), "scorers": FakeTeam(0), "references": FakeTeam()}
    require_room = (cluster or Cluster()).require_room
    return Elastic(load_config(overrides=overrides), teams, require_room=require_room, record=record)


def ask(elastic: Elastic, *scalings: tuple[str, int]) -> list[str]:
    async def scenario() -> list[str]:
        answers = []
        for name, num in scalings:
            answers.append(await elastic.scale(name, num))
            await asyncio.sleep(0.01)
        return answers

    return asyncio.run(scenario())


def test_it_says_what_will_happen_and_does_it():
    cluster = Cluster()
    elastic = make(cluster=cluster)
    assert ask(elastic, ("samplers", 3), ("scorers", 2), ("samplers", 1), ("sampler", 1)) == [
        "1 serve, 3 wanted; 2 more start, and get work when they are ready and hold the current weights",
        "1 serve, 2 wanted; 1 more start, and get work when they are ready",
        "3 serve, 1 wanted; 2 end what they are doing, and leave",
        "1 serve, 1 wanted; nothing changes",
    ]
    assert elastic.numbers == {"samplers": 1, "scorers": 2}
    assert elastic.changed == {"scorers": 2}, "what a resumed run starts with, beside its settings"
    assert cluster.asked[1] == ("scorers", 1, {"samplers": 3, "scorers": 2}), "room beside what the others are to be"


def test_a_wish_that_is_repeated_while_they_start_asks_for_no_more_room():
    async def scenario() -> list[str]:
        starting = asyncio.Event()
        team.hold = starting
        answers = [await elastic.scale("samplers", num) for num in (3, 3, 4)]
        await asyncio.sleep(0.01)
        assert elastic.numbers["samplers"] == 1
        starting.set()
        await asyncio.sleep(0.01)
        return answers

    cluster, team = Cluster(room=2), FakeTeam(0)
    elastic = Elastic(load_config(), {"samplers": team}, require_room=cluster.require_room, record=forget)
    assert [answer.partition(";")[0] for answer in asyncio.run(scenario())] == [
        "1 serve, 3 wanted",
        "1 serve, 3 wanted",
        "1 serve, 4 wanted",
    ]
    assert [num_more for _, num_more, _ in cluster.asked] == [2, 1]
    assert elastic.numbers["samplers"] == 4


@pytest.mark.parametrize(
    ("name", "num", "message"),
    [
        ("samplers", 0, "scale samplers=0: at least 1 stays; stop the run to end them all."),
        ("guide", 2, "scale guides=2: there is no such role; name one of samplers, scorers, references."),
        ("learners", 2, "scale learners=2: there is no such role; name one of samplers, scorers, references."),
        ("references", 2, "scale references=2: this run has no references; method.name=d2o."),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(name, num, message):
    with pytest.raises(ConfigError) as caught:
        ask(make(), (name, num))
    assert str(caught.value) == message


def test_a_cluster_without_room_is_told_at_once_and_nothing_changes():
    elastic = make(cluster=Cluster(room=1))
    with pytest.raises(PlacementError, match=r"no place for 1 of 2 sampler bundle\(s\)"):
        ask(elastic, ("samplers", 3))
    assert (elastic.numbers["samplers"], elastic.changed) == (1, {})


def test_the_bounds_of_autoscaling_hold_for_a_wish_too():
    with pytest.raises(ConfigError, match=r"scale samplers=4: samplers\.autoscale keeps them from 1 to 3"):
        ask(make(AUTOSCALE), ("samplers", 4))


def test_a_run_that_is_ending_starts_nothing():
    async def scenario() -> None:
        elastic = make()
        await elastic.close()
        with pytest.raises(ConfigError, match="the run is ending"):
            await elastic.scale("samplers", 2)

    asyncio.run(scenario())


def observe(elastic: Elastic, num_steps: int) -> None:
    async def scenario() -> None:
        for _ in range(num_steps):
            elastic.observe(STARVED, caught_up=False)
            await asyncio.sleep(0.02)

    asyncio.run(scenario())


def test_starving_learners_get_more_samplers_up_to_the_most_and_the_reason_is_recorded():
    events: list[Event] = []
    elastic = make(AUTOSCALE, record=events.append)
    observe(elastic, 9)
    assert elastic.numbers["samplers"] == 3
    assert [event.reason for event in events if event.rank is None] == [
        "samplers: 1 -> 2 (learners waited for batches for 50% of their time over the last 1 steps)",
        "samplers: 2 -> 3 (learners waited for batches for 50% of their time over the last 1 steps)",
    ]


def test_without_autoscale_nothing_is_decided():
    elastic = make()
    observe(elastic, 9)
    assert elastic.numbers["samplers"] == 1


def test_a_decision_without_room_is_logged_and_the_run_goes_on(caplog):
    elastic = make(AUTOSCALE, cluster=Cluster(room=0))
    observe(elastic, 3)
    assert elastic.numbers["samplers"] == 1
    assert "samplers.autoscale wants 2 samplers" in caplog.text
    assert "no place for 1 of 1" in caplog.text


def test_load_is_in_shares_of_the_step_and_per_sampler():
    assert load_of(STARVED, 2, caught_up=True) == Load(wait_frac=0.5, busy_frac=0.5, caught_up=True)
    assert load_of({**STARVED, "sampler/busy_s": 90.0}, 2, caught_up=True).busy_frac == 1.0, "of more than one step"


def test_a_start_outside_the_bounds_of_autoscaling_is_refused_as_a_setting():
    with pytest.raises(ConfigError, match=r"samplers\.num=4 is not from samplers\.autoscale\.min=1 to .*max=3"):
        load_config(overrides=[AUTOSCALE, "samplers.num=4"])

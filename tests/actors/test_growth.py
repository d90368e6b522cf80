"""When an elastic group that has fewer ranks than it wants starts anew with more."""

import pytest
from ray.exceptions import RaySystemError

from negalign_ray.actors.growth import LOOK_EVERY_S, Growth
from negalign_ray.actors.packing import Node
from negalign_ray.actors.plan import Plan, make_plan

PATIENCE_S = 60.0


class World:
    """A clock that each look moves on, and a node whose free CPUs may change."""

    def __init__(self, plan: Plan, *, wanted: int = 4, free: float = 0.0) -> None:
        self.now_s, self.free_cpus = 1000.0, free
        self.growth = Growth(plan, wanted=wanted, free=lambda: [Node("n", self.free_cpus)], clock=lambda: self.now_s)

    def looks(self, *steps: int, every_s: float = LOOK_EVERY_S) -> list[int | None]:
        answers = []
        for step in steps:
            answers.append(self.growth.look(step))
            self.now_s += every_s
        return answers


@pytest.fixture
def plan(toy_config) -> Plan:
    """Two ranks of 0.8 CPUs each, of the four that are wanted; 1000 steps."""
    settings = ("learners.num=2", "learners.min_num=1", "learners.cpus=0.8", "learners.steps=1000")
    return make_plan(toy_config(*settings, f"learners.grow_after_s={PATIENCE_S}"))


LONG = range(0, int(PATIENCE_S / LOOK_EVERY_S) + 1)  # looks until the patience has passed


@pytest.mark.parametrize(("free", "num"), [(0.7, None), (0.8, 3), (1.5, 3), (1.6, 4), (64.0, 4)])
def test_as_many_as_there_has_been_room_for_beside_those_that_train(plan, free, num):
    answers = World(plan, free=free).looks(*LONG)
    assert answers == [None] * (len(LONG) - 1) + [num]


def test_room_that_goes_away_again_counts_for_nothing(plan):
    world = World(plan, free=1.6)
    assert set(world.looks(*LONG[:-1])) == {None}
    world.free_cpus = 0.0
    assert world.looks(LONG[-1]) == [None]
    world.free_cpus = 1.6
    assert world.looks(*LONG) == [None] * (len(LONG) - 1) + [4]


def test_the_least_that_there_was_room_for_counts(plan):
    world = World(plan, free=1.6)
    world.looks(*LONG[:4])
    world.free_cpus = 0.9
    world.looks(4)
    world.free_cpus = 1.6
    assert world.looks(*LONG[5:])[-1] == 3


def test_shortly_before_the_end_the_group_stays_as_it_is(plan):
    """A step takes as long as a look: so many of them are left when the patience has passed, one more than it takes."""
    left = len(LONG)
    steps = [1000 - left - LONG[-1] + look for look in LONG]
    assert World(plan, free=1.6).looks(*steps)[-1] == 4
    assert World(plan, free=1.6).looks(*(step + 1 for step in steps))[-1] is None


def test_before_a_step_has_been_taken_nobody_knows_what_a_start_would_save(plan):
    assert set(World(plan, free=1.6).looks(*[0] * 30)) == {None}


def test_a_full_group_and_one_that_may_not_grow_ask_nobody(plan):
    never = plan.config.learners.model_copy(update={"grow_after_s": None})
    fixed = Plan(**{**vars(plan), "config": plan.config.model_copy(update={"learners": never})})

    def ask() -> list[Node]:
        raise AssertionError("no need to")

    assert Growth(plan, wanted=2, free=ask).look(5) is None
    assert Growth(fixed, wanted=4, free=ask).look(5) is None
    with pytest.raises(AssertionError, match="no need to"):
        Growth(plan, wanted=4, free=ask).look(5)


def test_a_cluster_that_does_not_answer_costs_nothing_but_a_warning(plan, caplog):
    def fail() -> list[Node]:
        raise RaySystemError("the GCS is busy")

    assert Growth(plan, wanted=4, free=fail).look(5) is None
    assert "the GCS is busy" in caplog.text


def test_free_nodes_are_looked_at_every_few_seconds_only(plan):
    asked = []
    growth = Growth(plan, wanted=4, free=lambda: asked.append(1) or [], clock=iter([10.0, 11.0, 11.9, 12.0]).__next__)
    assert [growth.look(step) for step in range(4)] == [None] * 4
    assert len(asked) == 2

"""A run whose learner died goes on by itself, and starts with as many ranks as there is room for."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from negalign_ray.actors.packing import Node
from negalign_ray.actors.plan import make_plan
from negalign_ray.actors.restarts import with_learners_that_fit, with_restarts
from negalign_ray.config import Config
from negalign_ray.errors import ConfigError, DiedError, LostObjectError, RoleError
from negalign_ray.settings import load_config
from tests.actors.test_find_checkpoint import checkpoint, run, steps_in  # noqa: F401  # a fixture

DEATH = DiedError("its worker process has died", role="learner", rank=1)


@dataclass(frozen=True)
class FakePlan:
    """All of a plan that is looked at."""

    config: Config


class Attempts:
    """Each ends as it is told: with an error, a summary, or None."""

    def __init__(self, *ends: Exception | dict | None) -> None:
        self._ends = list(ends)
        self.began_with: list[str | None] = []
        self.configs: list[Config] = []

    def __call__(self, plan: FakePlan, resume_from: Path | None) -> dict | None:
        self.began_with.append(resume_from and resume_from.name)
        self.configs.append(plan.config)
        end = self._ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end


class Cluster:
    """One node, of which other work occupies some CPUs for some seconds."""

    def __init__(self, cpus: float, *, occupied: float = 0.0, until_s: float = 0.0) -> None:
        self._cpus, self._occupied, self._until_s = cpus, occupied, until_s
        self.waited_s = 0.0

    def live(self) -> list[Node]:
        return [Node("n", self._cpus)]

    def free(self) -> list[Node]:
        return [Node("n", self._cpus - (self._occupied if self.waited_s < self._until_s else 0.0))]

    def pause(self, seconds: float) -> None:
        self.waited_s += seconds


def plan_of(run: Config, restarts: int) -> FakePlan:  # noqa: F811
    """The same run, as its config.yaml has it but for the restarts."""
    return FakePlan(run.model_copy(update={"learners": run.learners.model_copy(update={"restarts": restarts})}))


@pytest.mark.parametrize("loss", [DEATH, LostObjectError("gone with its node", role="guide")])
def test_it_goes_on_from_the_newest_checkpoint_and_what_came_after_is_cut_off(run, loss):  # noqa: F811
    attempts = Attempts(loss, {"steps": 20})
    assert with_restarts(plan_of(run, 1), attempts) == {"steps": 20}
    assert attempts.began_with == [None, "step-00000010"]
    assert steps_in(run.run_dir / "metrics.jsonl") == list(range(1, 11))


def test_each_death_costs_a_restart_and_the_last_one_ends_the_run(run):  # noqa: F811
    attempts = Attempts(DEATH, DEATH, DEATH)
    with pytest.raises(DiedError, match="has died"):
        with_restarts(plan_of(run, 2), attempts)
    assert attempts.began_with == [None, "step-00000010", "step-00000010"]


def test_a_run_that_was_to_end_is_not_restarted(run):  # noqa: F811
    attempts = Attempts(DEATH)
    with pytest.raises(DiedError, match="has died"):
        with_restarts(plan_of(run, 3), attempts, is_unwanted=lambda: True)
    assert len(attempts.began_with) == 1


def test_one_that_ended_for_more_ranks_goes_on_from_its_checkpoint_and_costs_no_restart(run):  # noqa: F811
    attempts = Attempts(None, None, {"steps": 20})
    assert with_restarts(plan_of(run, 0), attempts) == {"steps": 20}
    assert attempts.began_with == [None, "step-00000010", "step-00000010"]


def test_one_that_ended_for_more_ranks_and_was_then_to_end_altogether_is_interrupted(run):  # noqa: F811
    attempts = Attempts(None)
    with pytest.raises(KeyboardInterrupt):
        with_restarts(plan_of(run, 3), attempts, is_unwanted=lambda: True)
    assert attempts.began_with == [None]


@pytest.mark.parametrize(
    ("error", "restarts"),
    [
        (DEATH, 0),
        (DiedError("gone", role="conductor"), 3),
        (RoleError("out of memory in the forward pass", role="learner"), 3),
    ],
    ids=["none asked for", "another role", "an error of its own, which would come again"],
)
def test_everything_else_ends_the_run_at_once(run, error, restarts):  # noqa: F811
    attempts = Attempts(error)
    with pytest.raises(type(error)):
        with_restarts(plan_of(run, restarts), attempts)
    assert len(attempts.began_with) == 1


def test_without_a_checkpoint_the_death_is_told_with_the_reason_why_it_ends_the_run(run):  # noqa: F811
    for folder in (run.run_dir / "checkpoints").iterdir():
        folder.rename(run.run_dir / folder.name)
    with pytest.raises(DiedError) as caught:
        with_restarts(plan_of(run, 1), Attempts(DEATH))
    assert "learners.restarts=1 has nothing to go on from" in caught.value.__notes__[0]
    assert "it has no checkpoint" in caught.value.__notes__[0]


def test_a_run_that_was_scaled_is_restarted_as_it_was(run):  # noqa: F811
    checkpoint(run, 12, replicas={"samplers": 3})
    attempts = Attempts(DEATH, {})
    with_restarts(plan_of(run, 1), attempts)
    assert [config.samplers.num for config in attempts.configs] == [1, 3]


@pytest.mark.parametrize(("cpus", "num"), [(9.0, 4), (3.4, 3), (2.1, 2), (0.5, 2)])
def test_as_many_ranks_as_have_room_beside_the_other_roles(toy_config, cpus, num):
    """Sampler, scorer and reference need 0.1 CPU each, a rank 0.8: 2.1 CPUs hold them and two ranks."""
    plan = make_plan(toy_config("learners.num=4", "learners.min_num=2", "learners.cpus=0.8"))
    cluster = Cluster(cpus)
    assert with_learners_that_fit(plan, cluster.live, cluster.free, pause=cluster.pause).config.learners.num == num
    assert cluster.waited_s == 0.0


@pytest.mark.parametrize(("free_after_s", "num", "waited_s"), [(3, 4, 3.0), (500, 2, 5.0)])
def test_room_that_others_occupy_is_waited_for_as_long_as_the_deadline_says(toy_config, free_after_s, num, waited_s):
    plan = make_plan(toy_config("learners.num=4", "learners.min_num=2", "learners.cpus=0.8", "deadlines.place_s=5"))
    cluster = Cluster(9.0, occupied=6.5, until_s=free_after_s)
    assert with_learners_that_fit(plan, cluster.live, cluster.free, pause=cluster.pause).config.learners.num == num
    assert cluster.waited_s == waited_s


def test_a_fixed_group_stays_as_it_is_asked_for(toy_config):
    plan = make_plan(toy_config("learners.num=4"))
    cluster = Cluster(0.1)
    assert with_learners_that_fit(plan, cluster.live, cluster.free, pause=cluster.pause) == plan


def test_fewer_than_the_fewest_is_refused_as_a_setting():
    with pytest.raises(ConfigError, match=r"learners\.min_num=3 is above learners\.num=2"):
        load_config(overrides=["learners.num=2", "learners.min_num=3"])

"""A run as other processes meet it: found by its name, asked, stopped; and a cluster as it is left behind."""

import threading
import time

import pytest
import ray
from ray.util.state import list_actors, list_placement_groups

from negalign_ray.actors.attach import attach, running
from negalign_ray.actors.locate import FILE_NAME, namespace_of, read_meeting
from negalign_ray.actors.logs import LogReader
from negalign_ray.actors.presence import actors_of
from negalign_ray.actors.run import train
from negalign_ray.errors import ConfigError, NoSuchRunError, RunEndedError, RunExistsError

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ray_cluster")]

OF_RAY = {"AutoscalingCoordinator"}
"""Ray Train starts one for a whole cluster, with its first learners, and never ends it."""


class TrainThread(threading.Thread):
    def __init__(self, config) -> None:
        super().__init__(daemon=True)
        self.config, self.summary, self.error = config, None, None

    def run(self) -> None:
        try:
            self.summary = train(self.config)
        except BaseException as error:
            self.error = error


def until(condition, *, within_s: float = 120.0):
    deadline_s = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.2)
    return value


def alive(list_of) -> set[str]:
    """Names or ids of what Ray has not yet let go of."""
    found = list_of(address=ray.get_runtime_context().gcs_address, limit=1000)
    alive = [row for row in map(vars, found) if row["state"] not in ("DEAD", "REMOVED")]
    return {row["name"] or row.get("class_name") or row["placement_group_id"] for row in alive} - OF_RAY


def test_a_run_is_asked_and_stopped_from_elsewhere_and_nothing_stays_behind(toy_config, tmp_path):
    before = alive(list_actors), alive(list_placement_groups)
    config = toy_config("learners.steps=500", "guards.enabled=false", name="asked")
    thread = TrainThread(config)
    thread.start()
    until(lambda: thread.error or "asked" in running())
    assert thread.error is None

    with attach("asked") as run:
        overview = until(lambda: (now := run.status()).step >= 2 and now)
        assert (overview.phase, overview.num_steps, overview.run_dir) == ("training", 500, str(config.run_dir))
        assert {(each.role, each.rank) for each in overview.roles} >= {
            *(("sampler", 0), ("learner", 0), ("reference", 0))
        }
        assert overview.pace.groups_per_s
        assert overview.pace.eta_s
        assert overview.errors == ()
        assert {"sampler-0", "learner-0"} <= set(run.logs.sizes())
        assert any("step 1 loss" in text for _, text in LogReader(run.logs, run="asked", role="conductor").tail(0))
        assert read_meeting(config.run_dir) is not None
        assert {"asked/conductor", "asked/sampler-0"} <= set(actors_of("asked"))

        with pytest.raises(RunExistsError, match=r"run\.name=asked: a run of this name goes on"):
            train(toy_config(f"run.dir={tmp_path / 'other'}", name="asked"))
        with pytest.raises(ConfigError, match=r"a run goes on in .*asked"):
            train(config)
        with pytest.raises(NoSuchRunError, match=r"has no run 'another'\. It has: asked"), attach("another"):
            pass

        run.stop()
        thread.join(120)
        with pytest.raises(RunEndedError, match="has ended; its results are in"):
            run.status()

    assert thread.error is None
    assert 2 <= thread.summary["steps"] < 500
    assert (config.run_dir / "model" / "config.json").exists()
    assert list((config.run_dir / "checkpoints").glob("step-*")), "what --resume goes on from"
    assert not (config.run_dir / FILE_NAME).exists()
    with pytest.raises(RunEndedError, match=rf"its results are in {config.run_dir}"), attach(str(config.run_dir)):
        pass
    assert actors_of("asked") == []
    until(lambda: (alive(list_actors), alive(list_placement_groups)) == before, within_s=30)


@pytest.mark.slow
def test_two_runs_share_a_cluster_in_namespaces_of_their_own(toy_config):
    threads = [
        TrainThread(toy_config("learners.steps=40", "guards.enabled=false", name=name)) for name in ("one", "two")
    ]
    for thread in threads:
        thread.start()
    until(lambda: any(thread.error for thread in threads) or running() == ["one", "two"])
    for name in ("one", "two"):
        assert all(actor.startswith(f"{name}/") for actor in actors_of(name))
        with attach(name) as run:
            until(lambda run=run: run.status().step >= 1)
    with attach("one") as run:
        run.stop()
    threads[0].join(120)
    assert "two" in running()
    threads[1].join(120)
    assert [thread.error for thread in threads] == [None, None]
    assert threads[1].summary["steps"] == 40
    assert {actor["namespace"] for actor in ray.util.list_named_actors(all_namespaces=True)}.isdisjoint(
        {namespace_of("one"), namespace_of("two")}
    )

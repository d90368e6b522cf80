"""A cluster of one's own is started beside any other, and a cluster that does not come up says what to do."""

import time

import pytest
import ray
from ray._private.services import canonicalize_bootstrap_address

from negalign_ray.actors.cluster import init_settings, live_nodes, require_room, start_ray
from negalign_ray.actors.packing import Placement
from negalign_ray.errors import ClusterError, PlacementError, RoleError


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """What start_ray sets stays in the test."""
    for name in ("RAY_ADDRESS", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_TRAIN_V2_ENABLED"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_a_cluster_left_by_ray_start_is_not_what_a_run_lands_on(tmp_path):
    (tmp_path / "ray_current_cluster").write_text("127.0.0.1:6379")  # what `ray start` leaves

    def joined(settings):
        return canonicalize_bootstrap_address(settings.get("address"), temp_dir=str(tmp_path))  # what ray.init asks

    assert joined({}) is not None, "Ray still joins by itself"
    settings = init_settings(None)
    assert "object_store_memory" in settings, "which ray.init takes for a new cluster only"
    assert joined(settings) is None


def test_a_cluster_named_by_ray_address_is_joined_with_nothing_that_only_a_new_one_takes(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    given = {}
    start_ray(init=lambda **settings: given.update(settings))
    assert set(given) == {"log_to_driver", "logging_level", "namespace"}


def test_a_node_that_does_not_come_up_is_told_with_its_logs_and_the_remedy():
    def init(**settings):
        raise Exception("The current node timed out during startup. This could happen because ...")

    message = r"^cluster\[0\]: Ray did not start.*\(Exception: The current node timed out.*raylet\.err.*end other work"
    with pytest.raises(RoleError, match=message):
        start_ray(init=init)


def test_an_address_where_no_cluster_answers_is_named(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:1")

    def init(**settings):
        raise ConnectionError("could not connect\nto the GCS")

    with pytest.raises(
        ClusterError, match=r"^RAY_ADDRESS=10\.0\.0\.1:1 .*could not connect to the GCS.*unset RAY_ADDRESS"
    ):
        start_ray(init=init)


def test_ctrl_c_while_ray_starts_stays_ctrl_c():
    def init(**settings):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start_ray(init=init)


# Room on a live cluster


@ray.remote
class Idle:
    def ready(self) -> bool:
        return True


def ask(cpus: float) -> Placement:
    return Placement("sampler", 1, cpus, gpus=0.0, threads=1)


@pytest.mark.real
@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_too_small_is_refused_at_once_and_a_busy_one_after_the_deadline():
    (node,) = live_nodes()
    started = time.monotonic()
    with pytest.raises(PlacementError, match=r"no place for 1 of 1 sampler bundle.*no node holds even one"):
        require_room([ask(node.cpus + 1)], patience_s=60)
    assert time.monotonic() - started < 5

    require_room([ask(node.cpus)], patience_s=10)
    busy = Idle.options(num_cpus=node.cpus).remote()
    ray.get(busy.ready.remote(), timeout=60)
    with pytest.raises(PlacementError, match=r"What other work leaves free.*deadlines\.place_s=2 s"):
        require_room([ask(node.cpus)], patience_s=2)
    ray.kill(busy)
    require_room([ask(node.cpus)], patience_s=10)

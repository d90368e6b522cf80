"""An elastic group on the real stack: it starts with one rank, and anew with two when there is room for another."""

from statistics import fmean

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from negalign_ray.actors.run import train
from negalign_ray.actors.status import Status
from negalign_ray.events import EventKind, read_events
from tests.actors.conftest import read_rows

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(600)]
STEPS = 120


def test_a_group_grows_when_others_make_room_and_learns_what_a_full_one_learns(toy_config):
    settings = (f"learners.steps={STEPS}", "guards.enabled=false", "checkpoints.every=0", "learners.num=2")
    train(full := toy_config(*settings, name="full"))
    config = toy_config(
        *(*settings, "learners.min_num=1", "learners.cpus=0.6", "learners.grow_after_s=2", "deadlines.place_s=2"),
        name="grown",
    )
    cpus = ray.cluster_resources()["CPU"]
    others = placement_group([{"CPU": cpus - 1.2}])  # three roles and one rank take .9
    ray.get(others.ready(), timeout=60)
    seen: list[tuple[int, int]] = []

    def watch(phase: str, status: Status | None) -> None:
        if phase == "training" and status is not None:
            seen.append((status.step, status.num_learners))
            if status.step >= 2:
                remove_placement_group(others)

    summary = train(config, on_status=watch)
    assert summary["steps"] == STEPS
    assert {num for _, num in seen} >= {1, 2}
    [grown] = [event for event in read_events(config.run_dir) if event.kind is EventKind.SCALE]
    assert (grown.role, grown.reason) == ("learner", "learners: 1 -> 2 (there has been room for 2 s)")
    of_ranks = [read_rows(config.run_dir / "samples" / f"rank-{rank}.jsonl") for rank in (0, 1)]
    first_of_two = min(row["step"] for row in of_ranks[1])
    assert grown.step < first_of_two <= STEPS
    orders = [row["order_id"] for rows in of_ranks for row in rows]
    assert len(orders) == len(set(orders)) == STEPS * config.learners.groups_per_step, "each group once"
    rows = [read_rows(each.run_dir / "metrics.jsonl") for each in (full, config)]
    assert [row["step"] for row in rows[1]] == list(range(1, STEPS + 1))
    losses = [[row["learner/loss"] for row in each] for each in rows]
    assert losses[1][:first_of_two] == pytest.approx(losses[0][:first_of_two], rel=1e-3)
    assert fmean(losses[1][-5:]) == pytest.approx(fmean(losses[0][-5:]), rel=0.1)
    assert (config.run_dir / "model" / "model.safetensors").is_file()

"""A learner rank dies in the middle of a step: the run ends with its name, and goes on from the checkpoint."""

import pytest

from negalign_ray.actors.resume import find_checkpoint
from negalign_ray.actors.run import resume, train
from negalign_ray.errors import DiedError
from tests.actors.conftest import read_rows
from tests.faults.harness import Scene, events, gone_within, kill, require_sound, sabotage

pytestmark = [
    *(pytest.mark.real, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(600)),
]
TWO_RANKS = ("learners.num=2", "learners.steps=5", "checkpoints.every=1")


@pytest.mark.parametrize(("rank", "engine"), [(0, "transformers"), (1, "transformers"), (1, "vllm")])
def test_a_learner_rank_killed_mid_step_ends_the_run_with_its_name_and_the_run_can_be_resumed(
    toy_config, report, rank, engine
):
    config = toy_config(*TWO_RANKS, f"samplers.engine={engine}")

    def strike(scene: Scene) -> None:
        scene.wait_for_step(2)
        scene.wait_while_it("trains on step", role="learner", rank=rank, for_s=0.0)
        kill(scene.pid(f"learner-{rank}"))

    other = f"learner-{1 - rank}"
    with sabotage(config, strike) as saboteur, pytest.raises(DiedError) as caught:
        train(config)
    seconds = saboteur.seconds_since()
    assert f"learner[{rank}]: The actor died" in str(caught.value)
    assert f"--resume {config.run_dir}" in caught.value.__notes__[0]
    assert gone_within([Scene(config).pid(other)], seconds=30) == []
    assert "orders: " in events(config, "failed")[0]["reason"]
    again = find_checkpoint(config.run_dir)
    assert again.checkpoint.step >= 2
    summary = resume(again)
    require_sound(config, summary)
    report(f"kill -9 of learner rank {rank} in a step", ended="error, resumed", seconds=seconds, config=config)


def test_with_restarts_the_run_goes_on_by_itself_and_learns_what_an_undisturbed_one_learns(toy_config, report):
    straight = toy_config(*TWO_RANKS, name="straight")
    train(straight)
    config = toy_config(*TWO_RANKS, "learners.restarts=1")

    def strike(scene: Scene) -> None:
        scene.wait_for_step(3)
        kill(scene.pid("learner-1"))

    with sabotage(config, strike) as saboteur:
        summary = train(config)
    require_sound(config, summary)
    losses = [[row["learner/loss"] for row in read_rows(c.run_dir / "metrics.jsonl")] for c in (straight, config)]
    assert losses[1] == losses[0]
    assert [row["role"] for row in events(config, "fault")] == ["learner"]
    assert len(events(config, "resume")) == 1
    seconds = saboteur.seconds_to_next_step
    report("kill -9 of a learner rank, learners.restarts=1", ended="goes on", seconds=seconds, config=config)

"""The conductor dies: the run ends with its name, nothing of it stays behind, and it goes on from the checkpoint."""

import pytest

from negalign_ray.actors.resume import find_checkpoint
from negalign_ray.actors.run import resume, train
from negalign_ray.actors.stall import find_processes
from negalign_ray.errors import RoleError
from tests.faults.harness import LONG_ANSWERS, Scene, both_engines, gone_within, kill, require_sound, sabotage

pytestmark = [
    *(pytest.mark.real, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(600)),
]


@both_engines
def test_a_conductor_that_is_killed_ends_the_run_with_its_name_and_the_run_can_be_resumed(toy_config, report, engine):
    config = toy_config(*LONG_ANSWERS, f"samplers.engine={engine}", "learners.steps=5", "checkpoints.every=1")

    def strike(scene: Scene) -> None:
        scene.wait_for_step(2)
        scene.wait_while_it("sample call", role="sampler")
        kill(scene.pid("conductor-0"))

    with sabotage(config, strike) as saboteur, pytest.raises(RoleError) as caught:
        train(config)
    seconds = saboteur.seconds_since()
    assert str(caught.value).startswith("conductor[0]: The actor died")
    assert f"--resume {config.run_dir}" in caught.value.__notes__[0]
    assert gone_within([process.pid for process in find_processes(config.run_dir)], seconds=60) == []
    again = find_checkpoint(config.run_dir)
    assert again.checkpoint.step >= 1
    summary = resume(again)
    require_sound(config, summary)
    report("kill -9 of the conductor", ended="error, resumed", seconds=seconds, config=config)

"""A role that hangs where no call has a deadline: the watchdog ends the run and says where everybody was."""

import pytest

from negalign_ray.actors.run import train
from negalign_ray.actors.stall import find_processes
from negalign_ray.errors import StallError
from tests.faults.harness import Scene, events, freeze, gone_within, sabotage

pytestmark = [
    *(pytest.mark.real, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(400)),
]
CALLS = ("start_s", "sample_s", "score_s", "reference_s", "weights_s", "guide_s", "checkpoint_s")
IMPATIENT = (*(f"deadlines.{name}=45" for name in CALLS), "deadlines.stall_s=46")


def test_a_learner_rank_that_hangs_is_named_with_the_stacks_of_everybody_else(toy_config, report):
    config = toy_config("learners.num=2", "learners.steps=50", *IMPATIENT)

    def strike(scene: Scene) -> None:
        scene.wait_for_step(1)
        scene.wait_while_it("trains on step", role="learner", rank=1, for_s=0.0)
        freeze(scene.pid("learner-1"))

    with sabotage(config, strike) as saboteur, pytest.raises(StallError) as caught:
        train(config)
    seconds = saboteur.seconds_since()
    message = str(caught.value)
    assert message.startswith("learner[1]: nothing has moved for"), message
    assert "learner[1]: trains on step 1 for" in message
    assert "in a process that gives no sign; learner[0]: trains on step 1 for" in message
    assert "(deadlines.stall_s=46 s)" in message
    stalled = (config.run_dir / "logs" / "stall.log").read_text()
    assert "sampler[0] v" in stalled
    stack_of = {part.partition(" ")[0]: part for part in stalled.split("Stacks of ")[1:]}
    assert "none came" in stack_of["learner-1"], "a process that is stopped cannot tell"
    assert "negalign_ray/loops/training.py" in stack_of["learner-0"]
    assert "default_worker.py" in stack_of["sampler-0"]
    assert events(config, "stall")[0]["reason"] in message
    assert gone_within([process.pid for process in find_processes(config.run_dir)], seconds=30) == []
    report("a learner rank hangs; deadlines.stall_s=46", ended="error", seconds=seconds, config=config)


def test_a_conductor_that_hangs_is_named_by_the_driver(toy_config, report):
    config = toy_config("learners.steps=50", *IMPATIENT)

    def strike(scene: Scene) -> None:
        scene.wait_for_step(1)
        freeze(scene.pid("conductor-0"))

    with sabotage(config, strike) as saboteur, pytest.raises(StallError, match=r"^conductor\[0\]: .*has not answered"):
        train(config)
    seconds = saboteur.seconds_since()
    assert "it does not answer" in (config.run_dir / "logs" / "stall.log").read_text()
    assert gone_within([process.pid for process in find_processes(config.run_dir)], seconds=60) == []
    report("the conductor hangs; deadlines.stall_s=46", ended="error", seconds=seconds, config=config)

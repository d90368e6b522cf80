"""A sampler, scorer or reference dies or hangs in the middle of its work: it is replaced and the run goes on."""

import pytest

from negalign_ray.actors.run import train
from tests.faults.harness import LONG_ANSWERS, Scene, both_engines, events, freeze, kill, require_sound, sabotage

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(400)]
CALLS = {"sampler": "sample call", "scorer": "score call", "reference": "reference call"}
PROCESSES = {"sampler": "sampler-0", "scorer": "scorer-0", "reference": "reference-rpos-0"}
STEPS = ("learners.steps=6", "guards.enabled=false")  # a busy machine may miss the moment in some of them
WITHOUT_HELP = ("references.cache_size=0", "references.micro_batch_tokens=1")
SLOW_REFERENCE = (*LONG_ANSWERS, *WITHOUT_HELP, "sampling.num_samples=16")  # rows of two answers, one at a time
EVALUATED = ("evaluation.enabled=true", "evaluation.num_prompts=4", "evaluation.num_benign=2", "learners.steps=2")
SLOW_HEAD = '[{"name": "words", "kind": "python", "target": "tests.faults.heads:takes_a_second"}]'


def strike(role: str, how):
    """At a call of the second step: the first one is also that of the warm-up."""

    def act(scene: Scene) -> None:
        scene.wait_for_step(1)
        scene.wait_while_it(CALLS[role], role=role)
        how(scene.pid(PROCESSES[role]))

    return act


@both_engines
def test_a_sampler_killed_mid_generation_is_replaced_and_its_orders_are_issued_again(toy_config, report, engine):
    config = toy_config(*LONG_ANSWERS, *STEPS, f"samplers.engine={engine}")
    with sabotage(config, strike("sampler", kill)) as saboteur:
        summary = train(config)
    require_sound(config, summary)
    assert "its worker process has died" in events(config, "fault")[0]["reason"]
    assert [row["role"] for row in events(config, "replace")] == ["sampler"]
    seconds = saboteur.seconds_to_next_step
    report("kill -9 of a sampler while it writes", ended="goes on", seconds=seconds, config=config, summary=summary)


def test_the_only_sampler_killed_in_the_evaluation_after_training_is_replaced_at_the_last_weights(toy_config, report):
    """The learners, who published these weights, have ended by then."""
    config = toy_config(*EVALUATED, "evaluation.max_new_tokens=200", "learners.restarts=1")

    def act(scene: Scene) -> None:
        scene.wait_until(lambda: scene.phase() == "evaluating after")
        scene.wait_while_it("sample call", role="sampler")
        kill(scene.pid("sampler-0"))

    with sabotage(config, act) as saboteur:
        summary = train(config)
    require_sound(config, summary)
    assert summary["figures"], "the table is there"
    assert (config.run_dir / "summary.md").is_file()
    [replaced] = events(config, "replace")
    assert replaced["reason"] == "a new actor has version 2"
    assert events(config, "resume") == [], "nothing was trained again"
    seconds = saboteur.seconds_since()
    report("kill -9 of the only sampler in the last evaluation", ended="goes on", seconds=seconds, config=config)


@both_engines
def test_a_sampler_that_hangs_is_replaced_after_its_deadline(toy_config, report, engine):
    config = toy_config(*LONG_ANSWERS, *STEPS, "deadlines.sample_s=30", f"samplers.engine={engine}")
    with sabotage(config, strike("sampler", freeze)) as saboteur:
        summary = train(config)
    require_sound(config, summary)
    assert "no answer within deadlines.sample_s=30 s" in events(config, "fault")[0]["reason"]
    fault = "a sampler hangs; deadlines.sample_s=30"
    report(fault, ended="goes on", seconds=saboteur.seconds_to_next_step, config=config, summary=summary)


@both_engines
@pytest.mark.parametrize("role", ["scorer", "reference"])
def test_a_scorer_or_reference_killed_at_work_is_replaced_and_asked_again(toy_config, report, role, engine):
    config = toy_config(*STEPS, f"samplers.engine={engine}", f"scorers.heads={SLOW_HEAD}", *SLOW_REFERENCE)
    with sabotage(config, strike(role, kill)) as saboteur:
        summary = train(config)
    require_sound(config, summary)
    assert [row["role"] for row in events(config, "replace")] == [role]
    num_groups = config.learners.steps * config.learners.groups_per_step
    assert summary["orders"] == {"issued": num_groups, "trained": num_groups}, (
        "the call was repeated, no group was lost"
    )
    fault = f"kill -9 of a {role} at work"
    report(fault, ended="goes on", seconds=saboteur.seconds_to_next_step, config=config, summary=summary)


@pytest.mark.parametrize("role", ["scorer", "reference"])
def test_a_scorer_or_reference_that_hangs_is_replaced_after_its_deadline(toy_config, report, role):
    deadlines = ("deadlines.score_s=15", "deadlines.reference_s=15")
    config = toy_config(*STEPS, f"scorers.heads={SLOW_HEAD}", *SLOW_REFERENCE, *deadlines)
    with sabotage(config, strike(role, freeze)) as saboteur:
        summary = train(config)
    require_sound(config, summary)
    assert "=15 s" in events(config, "fault")[0]["reason"]
    fault = f"a {role} hangs; its deadline is 15 s"
    report(fault, ended="goes on", seconds=saboteur.seconds_to_next_step, config=config, summary=summary)

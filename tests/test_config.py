"""Settings that contradict each other are refused before anything starts, with the values and the remedy."""

import pytest

from negalign_ray.config import CheckpointsConfig
from negalign_ray.errors import ConfigError
from negalign_ray.settings import load_config

HEAD = '{"name": "a", "kind": "python", "target": "m:f"}'
GATE = 'sampling.reward_gate={{"head": "a", {}}}'
HEADS_OF = 'scorers.heads=[{{"name": "a", "kind": "python", "target": "m:f", "direction": "{}"}}]'
ITERATIONS = ("sampling.schedule=interval", "sampling.online_from_step=0")
CONTRADICTIONS = [
    (("learners.num=4", "learners.groups_per_step=2"), r"learners\.groups_per_step=2 gives some of the 4 ranks"),
    (("sampling.buffer_groups=8", "learners.groups_per_step=16"), r"sampling\.buffer_groups=8 cannot hold one step"),
    (
        ("sampling.staleness=1", "sampling.buffer_groups=20", "learners.groups_per_step=16"),
        r"sampling\.buffer_groups=20 has no room for a second step.*set it to at least 32",
    ),
    (("sampling.min_samples=12", "sampling.num_samples=11"), r"sampling\.min_samples=12 exceeds"),
    (("sampling.num_samples=-1",), r"sampling\.num_samples=-1: must be greater than or equal to 0"),
    (('sampling.reward_gate={"head": "harm", "max_score": 0.5}',), r"reward_gate\.head='harm' is not one of"),
    (
        (GATE.format('"max_score": 0.5'), HEADS_OF.format("help")),
        r"max_score=0\.5 and min_score=None, but its head 'a' is of direction help: the gate drops low scores\. Set "
        r"sampling\.reward_gate\.min_score alone",
    ),
    (
        (GATE.format('"min_score": 0.5'), HEADS_OF.format("harm")),
        r"'a' is of direction harm: the gate drops high scores\. Set sampling\.reward_gate\.max_score alone",
    ),
    ((GATE.format('"min_score": 0, "max_score": 1'), HEADS_OF.format("harm")), r"reward_gate\.max_score alone"),
    ((GATE.format('"max_score": null'), HEADS_OF.format("harm")), r"max_score=None and min_score=None"),
    (
        ('method={"name": "neat"}',),
        r"method\.reward_head='reward' is not one of scorers\.heads \[\]: neat ranks .*train-reward",
    ),
    ((f"scorers.heads=[{HEAD}, {HEAD}]",), r"scorers\.heads: the name 'a' is used twice"),
    (("references.follow=snapshot",), r"references\.follow=snapshot with sampling\.schedule=online.*set .*interval"),
    (
        ("references.follow=snapshot", "sampling.schedule=interval", "references.rneg=other"),
        r"would replace the model of references\.rneg=other; set references\.rneg=null",
    ),
    (('method={"name": "ld_align"}',), r"method\.name=ld_align fits its guide.*schedule=online.*--preset ld_align"),
    (
        ('method={"name": "ld_align"}', *ITERATIONS, "sampling.refresh_every=20"),
        r"sampling\.buffer_groups=256 cannot hold one iteration.*: 320 groups \(sampling\.refresh_every=20 steps",
    ),
    (
        ('method={"name": "ld_align"}', *ITERATIONS, "sampling.refresh_every=4", "guide.heads=5"),
        r"guide\.width=128 does not split into guide\.heads=5.*multiple of 10",
    ),
    (
        ('scorers.heads=[{"name": "latent_distance", "kind": "python", "target": "m:f"}]',),
        r"'latent_distance' is what the guide's distances are stored under",
    ),
    (
        ("deadlines.stall_s=900",),
        r"deadlines\.stall_s=900 must be longer than every single call may take, and deadlines\.guide_s=1200; raise",
    ),
]


@pytest.mark.parametrize(("overrides", "message"), CONTRADICTIONS)
def test_contradictions_are_refused_with_values_and_remedy(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(preset="d2o", overrides=overrides)


def test_the_presets_fit_two_cores_by_default():
    config = load_config(preset="d2o")
    roles = (config.samplers, config.learners, config.scorers, config.references)
    assert sum(role.num * role.cpus for role in roles) <= 2.0


def test_constant_weights_need_no_guide_and_nothing_that_a_guide_asks_for():
    constant = 'method={"name": "ld_align", "weight_mode": "constant"}'
    assert not load_config(preset="d2o", overrides=[constant]).uses_guide
    assert load_config(preset="ld_align").uses_guide


@pytest.mark.parametrize("preset", ["ld_align", "spin"])
def test_self_play_presets_play_three_iterations_against_their_own_snapshots(preset):
    config = load_config(preset=preset)
    sampling = config.sampling
    assert (sampling.schedule, sampling.online_from_step, sampling.num_samples) == ("interval", 0, 1)
    assert sampling.instructions is None
    assert config.learners.steps == 3 * sampling.refresh_every
    assert config.references.follow == "snapshot"
    assert (config.method.beta, config.learners.lr) == (0.1, 5e-7)


def test_a_gate_with_the_bound_of_its_head_s_direction_is_accepted():
    overrides = [GATE.format('"min_score": 0.5'), HEADS_OF.format("help")]
    assert load_config(preset="d2o", overrides=overrides).sampling.reward_gate.min_score == 0.5


@pytest.mark.parametrize(
    ("every", "num_steps", "steps"),
    [
        (None, 20, [7, 14]),  # the quickstart
        (None, 3, [1, 2]),
        (None, 1, []),  # after the last step there is nothing to go on from
        (None, 151, [50, 100, 150]),
        (50, 20, []),
        (8, 20, [8, 16]),
        (0, 20, []),
    ],
)
def test_every_run_has_checkpoints_on_its_way_unless_it_is_told_otherwise(every, num_steps, steps):
    config = CheckpointsConfig(every=every)
    assert [step for step in range(1, num_steps + 1) if config.due(step, num_steps=num_steps)] == steps

"""Settings that contradict each other are refused before anything starts, with the values and the remedy."""

import pytest

from negalign_ray.errors import ConfigError
from negalign_ray.settings import load_config

HEAD = '{"name": "a", "kind": "python", "target": "m:f"}'
CONTRADICTIONS = [
    (("learners.num=4", "learners.groups_per_step=2"), r"learners\.groups_per_step=2 gives some of the 4 ranks"),
    (("sampling.buffer_groups=8", "learners.groups_per_step=16"), r"sampling\.buffer_groups=8 cannot hold one step"),
    (
        ("sampling.staleness=1", "sampling.buffer_groups=20", "learners.groups_per_step=16"),
        r"sampling\.buffer_groups=20 has no room for a second step.*set it to at least 32",
    ),
    (("sampling.min_samples=12", "sampling.num_samples=11"), r"sampling\.min_samples=12 exceeds"),
    (('sampling.reward_gate={"head": "harm", "max_score": 0.5}',), r"reward_gate\.head='harm' is not one of"),
    ((f"scorers.heads=[{HEAD}, {HEAD}]",), r"scorers\.heads: the name 'a' is used twice"),
]


@pytest.mark.parametrize(("overrides", "message"), CONTRADICTIONS)
def test_contradictions_are_refused_with_values_and_remedy(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(preset="d2o", overrides=overrides)


def test_the_presets_fit_two_cores_by_default():
    config = load_config(preset="d2o")
    roles = (config.samplers, config.learners, config.scorers, config.references)
    assert sum(role.num * role.cpus for role in roles) <= 2.0

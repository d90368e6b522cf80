"""The file of `negalign-ray compare`: what it means, and every unfair comparison refused before anything starts."""

import json
from pathlib import Path

import pytest

from negalign_ray.errors import ConfigError
from negalign_ray.settings.comparison import differences, load_comparison, nested
from negalign_ray.settings.fingerprint import changes, fingerprint

JUDGE = {"name": "judge", "kind": "linear", "target": "quickstart-judge"}
TOXICITY = {"name": "toxicity", "kind": "sklearn", "target": "alt-profanity-check"}
COMMON = {"learners": {"steps": 5, "groups_per_step": 4}, "evaluation.heads": [JUDGE]}
ENTRIES = [
    {"name": "d2o", "preset": "d2o", "set": {"method.alpha": 0.01, "learners": {"lr": 3e-6}}},
    {"name": "dpo", "preset": "dpo"},
]


@pytest.fixture
def load(tmp_path):
    def call(*overrides, entries=ENTRIES, common=COMMON, **more):
        path = tmp_path / "plan.yaml"
        path.write_text(json.dumps({"entries": entries, "common": common, **more}))  # JSON is YAML
        return load_comparison(path, out=tmp_path / "out", overrides=overrides)

    return call


def test_every_method_runs_under_every_seed_in_a_directory_of_its_own(load, tmp_path):
    comparison = load()
    assert [(run.method, run.seed) for run in comparison.runs] == [("d2o", 0), ("dpo", 0), ("d2o", 1), ("dpo", 1)]
    assert [run.config.run_dir.name for run in comparison.runs] == ["d2o-s0", "dpo-s0", "d2o-s1", "dpo-s1"]
    assert {run.config.run_dir.parent for run in comparison.runs} == {tmp_path / "out"}
    assert [run.config.run.seed for run in comparison.runs] == [0, 0, 1, 1]
    assert comparison.harm.name == "judge"


def test_an_entry_stands_over_the_common_settings_and_those_over_its_preset(load):
    d2o, dpo, *_ = (run.config for run in load("learners.weight_decay=0.5").runs)
    assert (d2o.method.alpha, d2o.method.beta, d2o.learners.lr) == (0.01, 0.1, 3e-6)
    assert (dpo.method.name, dpo.learners.lr, dpo.learners.steps) == ("dpo", 1e-5, 5)
    assert d2o.learners.weight_decay == dpo.learners.weight_decay == 0.5, "--set is for all, and last"


def test_dotted_names_and_sections_mean_the_same():
    assert nested({"method.alpha": 1, "method": {"beta": 2}, "a.b.c": [3]}) == {
        "method": {"alpha": 1, "beta": 2},
        "a": {"b": {"c": [3]}},
    }


REWARD = {**TOXICITY, "name": "reward", "direction": "harm"}
NEAT = {"name": "neat", "preset": "neat", "set": {"scorers.heads": [REWARD], "method.reward_head": "reward"}}
UNFAIR = [
    (
        {"entries": [ENTRIES[0], {**ENTRIES[1], "set": {"learners.steps": 9}}]},
        r"learners\.steps is 5 for d2o and 9 for",
    ),
    ({"entries": [ENTRIES[0], {**ENTRIES[1], "set": {"data.path": "x"}}]}, r"data\.path is quickstart for d2o and x"),
    ({"entries": ENTRIES[:1]}, "entries: .*at least 2"),
    ({"entries": [ENTRIES[0], ENTRIES[0]]}, "the entry name 'd2o' stands twice"),
    ({"seeds": [3]}, "seeds: .*at least 2"),
    ({"seeds": [3, 3]}, "the seed 3 stands twice"),
    ({"common": {**COMMON, "method": {"name": "sft"}}}, r"common\.method: the entries differ in their method"),
    ({"common": {**COMMON, "evaluation.enabled": False}}, "leaves nothing to compare"),
    ({"harm_head": "kindness"}, r"harm_head=kindness is not one of .*\['judge'\]"),
    ({"curve": {"at_most": 1.0, "at_least": 2.0}}, "give at_most or at_least"),
    ({"entries": [ENTRIES[0], {**ENTRIES[1], "presett": "x"}]}, r"entries\.1\.presett"),
    (
        {"entries": [ENTRIES[0], {**ENTRIES[1], "set": {"learners.lrr": 1}}, {"name": "x", "preset": "nope"}]},
        r"entry dpo: learners\.lrr=1.*did you mean(.|\n)*entry x: preset='nope'",
    ),
    (
        {"entries": [ENTRIES[0], NEAT], "common": {**COMMON, "evaluation.heads": [JUDGE, TOXICITY]}},
        r"neat trains on scorers\.heads\[reward\] \(target alt-profanity-check\), which evaluation\.heads\[toxicity\]",
    ),
]


@pytest.mark.parametrize(("file", "message"), UNFAIR)
def test_what_cannot_be_compared_is_refused_with_its_reason(load, file, message):
    with pytest.raises(ConfigError, match=message):
        load(**file)


def test_a_reward_gate_is_training_too_and_a_head_that_is_only_logged_is_not(load):
    common = {**COMMON, "evaluation.heads": [JUDGE, TOXICITY], "scorers.heads": [TOXICITY]}
    load(common=common)
    gate = {"name": "d2o", "preset": "d2o", "set": {"sampling.reward_gate": {"head": "toxicity", "max_score": 0.5}}}
    with pytest.raises(ConfigError, match="d2o trains on"):
        load(common=common, entries=[gate, ENTRIES[1]])


# Fingerprints


def test_differences_name_both_values_wherever_a_setting_stands():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == [("a.c", 2, 3), ("d", None, 4)]


def test_a_fingerprint_changes_with_a_setting_and_with_the_contents_of_a_file(load, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    config = load(f"data.path={rows}").runs[0].config
    written = json.loads(json.dumps(fingerprint(config)))
    assert changes(written, config) == []

    section = config.learners.model_copy(update={"lr": 0.5})
    assert changes(written, config.model_copy(update={"learners": section})) == ["learners.lr=3e-06 there, 0.5 now"]
    rows.write_text("{}\n{}\n")
    assert changes(written, config) == [f"{rows} has changed"]


NAMES_A_FILE = ("data.heldout_path", "data.benign_path", "evaluation.choices_path", "model.chat_template")
NAMES_A_MODEL = ("model.path", "references.rpos", "references.rneg", "guide.backbone")


@pytest.mark.parametrize("setting", [*NAMES_A_FILE, *NAMES_A_MODEL, "sampling.instructions"])
def test_a_fingerprint_changes_with_the_contents_behind_every_setting_that_names_some(load, tmp_path, setting):
    named = tmp_path / "named"
    content = named / "model.safetensors" if setting in NAMES_A_MODEL else named
    content.parent.mkdir(exist_ok=True)
    content.write_text("one")
    config = load(f"{setting}={named}").runs[0].config
    written = json.loads(json.dumps(fingerprint(config)))
    content.write_text("another")
    assert changes(written, config) == [f"{named} has changed"]


def test_where_a_run_lives_and_how_long_it_may_wait_changes_no_result(load):
    written, config = (load(*more).runs[0].config for more in ((), ("deadlines.start_s=7",)))
    moved = config.model_copy(update={"run": config.run.model_copy(update={"dir": Path("elsewhere")})})
    assert changes(fingerprint(written), moved) == []


def test_compared_runs_have_no_guards_since_all_of_them_take_the_same_number_of_updates(load):
    config = load("guards.kl.limit=0.1").runs[0].config
    assert not config.guards.enabled
    assert changes(fingerprint(config), load().runs[0].config) == [], "a run that took all its steps was not stopped"


def test_a_setting_that_came_into_being_later_has_its_default(load):
    config = load().runs[0].config
    written = fingerprint(config)
    del written["settings"]["learners"]["weight_decay"]
    assert changes(written, config) == []


@pytest.mark.parametrize("path", sorted(Path("docs/runs").glob("compare_*.yaml")), ids=lambda path: path.name)
def test_the_plans_of_the_documents_are_fair(path, tmp_path):
    assert len(load_comparison(path, out=tmp_path).methods) >= 2

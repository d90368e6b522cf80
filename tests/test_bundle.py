"""What `submit` takes along: the files that the settings name, and nothing of what lies around them."""

import sys

import pytest

from negalign_ray.errors import ConfigError
from negalign_ray.settings import load_config
from negalign_ray.settings.bundle import Bundle, make_bundle, relocated

ROOMY = 10**6


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project as they are: data beside an environment, a repository, runs and secrets."""
    for name in ("data/negatives.jsonl", "instructions.yaml", "judge/card.json", "judge/.env", "judge/weights"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    for name in (".git/config", ".venv/bin/python", "runs/old/model/weights", "secrets.txt", "data/other.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("left behind")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bundle_of(*overrides: str, limit_bytes: int = ROOMY, **more) -> Bundle:
    return make_bundle(load_config(preset="d2o", overrides=overrides), limit_bytes=limit_bytes, **more)


def names(bundle: Bundle) -> set[str]:
    return {file.name for file in bundle.files}


def test_only_named_files_are_packed_and_the_settings_name_them_there(project, tmp_path):
    bundle = bundle_of("data.path=data/negatives.jsonl", "sampling.instructions=./instructions.yaml")
    assert names(bundle) == {"inputs/data.path/negatives.jsonl", "inputs/sampling.instructions/instructions.yaml"}
    target = tmp_path / "target"
    target.mkdir()
    bundle.write(target)
    config = load_config(file=target / "config.yaml")
    assert (target / config.data.path).read_text() == "data/negatives.jsonl"
    assert (target / config.sampling.instructions).read_text() == "instructions.yaml"
    written = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert written == names(bundle) | {"config.yaml"}


def test_a_path_above_the_current_folder_works_there_too(project, monkeypatch):
    monkeypatch.chdir(project / "judge")
    bundle = bundle_of("data.path=../data/negatives.jsonl")
    assert bundle.config.data.path == "inputs/data.path/negatives.jsonl"
    assert names(bundle) == {"inputs/data.path/negatives.jsonl"}


def test_absolute_paths_and_names_stay_what_they_are(project):
    bundle = bundle_of("data.path=/shared/negatives.jsonl", "model.path=owner/model", "sampling.instructions=moral")
    assert bundle.files == ()
    assert {setting: str(path) for setting, path in bundle.absolute.items()} == {"data.path": "/shared/negatives.jsonl"}
    assert bundle.config.data.path == "/shared/negatives.jsonl"
    assert bundle.config.model.path == "owner/model"


def test_of_a_folder_hidden_files_runs_and_environments_stay_behind(project):
    head = 'evaluation.heads=[{"name": "judge", "kind": "linear", "target": "judge"}]'
    bundle = bundle_of("data.path=/shared/x.jsonl", head)
    assert names(bundle) == {f"inputs/evaluation.heads.0.target/judge/{name}" for name in ("card.json", "weights")}
    assert bundle.config.evaluation.heads[0].target == "inputs/evaluation.heads.0.target/judge"
    everything = bundle_of("data.path=.")
    assert not any(part in name for name in names(everything) for part in (".git", ".venv", "/runs/", ".env"))


def test_a_link_out_of_a_folder_is_refused(project):
    (project / "judge" / "link").symlink_to(project / "secrets.txt")
    head = 'evaluation.heads=[{"name": "judge", "kind": "linear", "target": "judge"}]'
    with pytest.raises(ConfigError, match=r"evaluation\.heads\.0\.target: .*link is a link that leads out"):
        bundle_of("data.path=/shared/x.jsonl", head)


def test_a_reward_function_comes_with_the_packages_around_it_but_not_with_their_other_files(project, monkeypatch):
    (project / "bundled_rewards" / "inner").mkdir(parents=True)
    for name in ("__init__.py", "inner/__init__.py", "inner/polite.py", "inner/rude.py", "data.csv"):
        (project / "bundled_rewards" / name).write_text("")
    monkeypatch.syspath_prepend(project)
    target = "bundled_rewards.inner.polite:score"
    bundle = bundle_of("data.path=/x.jsonl", f'scorers.heads=[{{"name": "a", "kind": "python", "target": "{target}"}}]')
    assert names(bundle) == {
        "bundled_rewards/__init__.py",
        "bundled_rewards/inner/__init__.py",
        "bundled_rewards/inner/polite.py",
    }
    assert bundle.config.scorers.heads[0].target == target
    for name in [name for name in sys.modules if name.startswith("bundled_rewards")]:
        del sys.modules[name]


def test_code_in_a_file_is_packed_and_the_target_still_names_what_is_in_it(project):
    (project / "mine.py").write_text("def score(pairs): ...\n")
    head = 'scorers.heads=[{"name": "a", "kind": "python", "target": "mine.py:score"}]'
    bundle = bundle_of("data.path=/x.jsonl", head, "method={name: custom, target: ./mine.py:METHOD}")
    assert names(bundle) == {"inputs/scorers.heads.0.target/mine.py", "inputs/method.target/mine.py"}
    assert bundle.config.scorers.heads[0].target == "inputs/scorers.heads.0.target/mine.py:score"
    elsewhere = relocated(bundle.config, project.__class__("/runs/d2o"))
    assert elsewhere.scorers.heads[0].target == "/runs/d2o/inputs/scorers.heads.0.target/mine.py:score"
    assert elsewhere.method.target == "/runs/d2o/inputs/method.target/mine.py:METHOD"
    assert elsewhere.data.path == "/x.jsonl"


def test_a_module_that_is_installed_is_expected_there_and_one_that_is_nowhere_is_refused(project):
    head = 'scorers.heads=[{{"name": "a", "kind": "python", "target": "{}"}}]'
    assert bundle_of("data.path=/x.jsonl", head.format("json:loads")).files == ()
    assert bundle_of("data.path=/x.jsonl", head.format("yaml:safe_load")).files == ()
    with pytest.raises(ConfigError, match=r"scorers\.heads\.0\.target: the module 'nowhere\.at_all' is not found"):
        bundle_of("data.path=/x.jsonl", head.format("nowhere.at_all:score"))


def test_more_files_are_taken_along_when_asked_for(project):
    bundle = bundle_of("data.path=/x.jsonl", include=[project / "secrets.txt", project / "judge"])
    assert names(bundle) == {"secrets.txt", "judge/card.json", "judge/weights"}
    (project / "judge" / "config.yaml").write_text("learners: {steps: 1}")
    with pytest.raises(ConfigError, match=r"the job has a config\.yaml of its own; rename yours"):
        bundle_of("data.path=/x.jsonl", include=[project / "judge" / "config.yaml"])
    with pytest.raises(ConfigError, match=r"--include nothing: there is no such file"):
        bundle_of("data.path=/x.jsonl", include=[project.__class__("nothing")])


def test_too_much_is_refused_with_the_largest_files(project):
    (project / "data" / "negatives.jsonl").write_text("x" * 3 * 2**20)
    with pytest.raises(ConfigError, match=r"3\.0 MiB along, more than --limit-mib=2; .*data\.path: .*negatives\.jsonl"):
        bundle_of("data.path=data/negatives.jsonl", limit_bytes=2 * 2**20)


def test_python_files_with_a_name_inside_are_packed_like_any_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def score(pairs):\n    return [0.0] * len(pairs)\nMETHOD = 1\n")
    config = load_config(
        preset="quickstart",
        overrides=[
            "method.name=custom",
            "method.target=mine.py:METHOD",
            "scorers.heads=[{name: a, kind: python, target: 'mine.py:score'}]",
            f"evaluation.heads=[{{name: b, kind: python, target: '{tmp_path}/mine.py:score'}}]",
        ],
    )
    bundle = make_bundle(config, limit_bytes=2**20)
    assert bundle.config.method.target == "inputs/method.target/mine.py:METHOD"
    assert bundle.config.scorers.heads[0].target == "inputs/scorers.heads.0.target/mine.py:score"
    assert {file.name for file in bundle.files} >= {"inputs/method.target/mine.py"}
    assert bundle.absolute["evaluation.heads.0.target"] == tmp_path / "mine.py", "stays where all nodes see it"


def test_the_module_of_a_method_is_packed(tmp_path, monkeypatch):
    (tmp_path / "a_method_of_mine.py").write_text("METHOD = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = load_config(overrides=["method.name=custom", "method.target=a_method_of_mine:METHOD"])
    assert "a_method_of_mine.py" in {file.name for file in make_bundle(config, limit_bytes=2**20).files}

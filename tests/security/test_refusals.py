"""What comes from elsewhere and could do harm is refused, by a typed error that says what it was.

Redirects of reward services: tests/rewards/test_http_head.py. Tokens of clusters: test_token.py.
"""

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import yaml

from negalign_ray.actors.locate import locate
from negalign_ray.actors.plan import make_plan
from negalign_ray.actors.resume import find_checkpoint
from negalign_ray.config import CheckpointsConfig, HeadConfig
from negalign_ray.data.instructions import load_instructions
from negalign_ray.engines.checkpoints import CheckpointStore
from negalign_ray.errors import CheckpointError, ConfigError, DataError, ModelError, NegalignError, ScoreError
from negalign_ray.models.packaged import resolve_model
from negalign_ray.rewards import build_head, check_head
from negalign_ray.settings import dump_config, load_config
from tests.rewards.test_http_head import PAIRS, good, http_config, redirect, serve

__all__ = ["serve"]  # a fixture
MARK = "code_has_run"


class Bomb:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return Path.touch, (self.folder / MARK,)


@pytest.fixture
def bomb(tmp_path):
    yield pickle.dumps(Bomb(tmp_path))
    assert not (tmp_path / MARK).exists(), "the code inside a pickle has run"


def test_the_bomb_would_go_off(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path)))  # noqa: S301
    assert (tmp_path / MARK).exists()


# Models


@pytest.fixture
def remote_code(toy_model, tmp_path):
    """A model that only its own code can build; the code leaves a file behind."""
    folder = tmp_path / "homemade"
    folder.mkdir()
    for file in toy_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((toy_model / "config.json").read_text())
    names = {"AutoConfig": "modeling_homemade.Config", "AutoModelForCausalLM": "modeling_homemade.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "homemade", "auto_map": names}))
    (folder / "modeling_homemade.py").write_text(f"open({str(tmp_path / MARK)!r}, 'w')\n")
    yield folder
    assert not (tmp_path / MARK).exists(), "the model's code has run"


@pytest.mark.parametrize("setting", ["model.path", "references.rpos", "references.rneg"])
def test_a_model_that_needs_its_own_code_is_refused_before_anything_starts(remote_code, toy_model, setting):
    model = [] if setting == "model.path" else [f"model.path={toy_model}"]
    config = load_config(preset="quickstart", overrides=[*model, f"{setting}={remote_code}"])
    with pytest.raises(
        ModelError, match=r"no model type 'homemade'.*brings code of its own \(auto_map\), which is never"
    ):
        make_plan(config)


def test_pickled_weights_are_refused(toy_model, tmp_path, bomb):
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_bytes((toy_model / "config.json").read_bytes())
    (folder / "pytorch_model.bin").write_bytes(bomb)
    with pytest.raises(ModelError, match=r"no \*\.safetensors weights.*pickled weights can run code"):
        resolve_model(str(folder))


# Checkpoints


@pytest.fixture
def run_dir(tmp_path):
    """A run with settings and no checkpoint yet."""
    folder = tmp_path / "runs" / "d2o"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(load_config(preset="d2o", overrides=["data.path=x.jsonl"])))
    return folder


def checkpoint_with(run_dir: Path, name: str, content: bytes) -> Path:
    """A checkpoint whose manifest and checksums are right, as whoever wants to do harm would make it."""
    folder = run_dir / "checkpoints" / "step-00000002"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    manifest = {"format": 1, "step": 2, "metric": None, "files": {name: entry}, "info": {}}
    checksum = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest | {"checksum": checksum}))
    return folder


@pytest.mark.parametrize("name", ["learner/mp_rank_00_model_states.pt", "state.pkl", "learner/optimizer.pth"])
def test_a_checkpoint_with_a_pickle_is_refused(run_dir, bomb, name):
    checkpoint_with(run_dir, name, bomb)
    with pytest.raises(
        CheckpointError, match=r"none of the 1 checkpoints.*lists .*, a pickle: loading one runs the code"
    ):
        find_checkpoint(run_dir)


@pytest.mark.parametrize("name", ["../../../outside.json", "../../secret"])
def test_a_checkpoint_that_names_files_outside_the_run_is_refused(run_dir, name):
    checkpoint_with(run_dir, name, b"{}")
    with pytest.raises(CheckpointError, match=r"the file name '\.\./.*' leads out of .*step-00000002"):
        find_checkpoint(run_dir)


def test_a_checkpoint_that_is_a_link_to_another_folder_is_refused(run_dir, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    checkpoint_with(run_dir, "state.json", b"{}").rename(elsewhere)
    (run_dir / "checkpoints" / "step-00000002").symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match=r"is a link to .*elsewhere; a checkpoint lies in its own run directory"):
        find_checkpoint(run_dir)
    assert CheckpointStore(run_dir, CheckpointsConfig()).checkpoints() == []


# Files of settings


@pytest.mark.parametrize(
    "text",
    [
        "run: !!python/object/apply:os.system ['true']\n",
        "run: {name: !!python/name:os.system }\n",
        "run: !include secrets.yaml\n",
        "run: &a {name: x}\nmodel: *a\n",
    ],
)
def test_yaml_that_is_more_than_data_is_refused_with_its_line(tmp_path, text):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"^{file}:1: .*(tag|anchors).* not read"):
        load_config(file=file)
    with pytest.raises(ConfigError, match=r"the tag !!?python.* is not read|the tag tag:yaml\.org,2002:python"):
        load_config(overrides=["run.name=!!python/object/apply:os.system ['true']"])


def test_instructions_with_tags_are_refused(tmp_path):
    file = tmp_path / "instructions.yaml"
    file.write_text("- !!python/object/apply:os.system ['true']\n")
    with pytest.raises(DataError, match="is not YAML: could not determine a constructor for the tag"):
        load_instructions(str(file))


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/b", "..", ".hidden", "a b", "a\n", "$(x)", ""])
def test_a_run_cannot_be_named_out_of_its_folder(name):
    with pytest.raises(ConfigError, match=r"run\.name"):
        load_config(preset="d2o", overrides=[f"run.name={json.dumps(name)}"])
    with pytest.raises(ConfigError, match="nor the name of a run"):
        locate(name, environment={})


# Reward heads


def test_a_pickled_classifier_is_refused_unless_it_is_vouched_for(tmp_path, bomb):
    file = tmp_path / "judge.joblib"
    file.write_bytes(bomb)
    with pytest.raises(ConfigError, match=r"is a pickle, and loading it runs whatever code it holds"):
        check_head(HeadConfig(name="judge", kind="sklearn", target=str(file)))


def test_texts_are_not_sent_on_to_another_host(serve):
    other = serve(good)
    service = serve(redirect(307, other.url.replace("127.0.0.1", "localhost")))
    with pytest.raises(ScoreError, match="texts are sent only to the configured host"):
        build_head(http_config(service.url)).score(PAIRS)
    assert other.requests_seen == []


# Secrets


def test_a_secret_in_a_url_is_refused_and_not_repeated(toy_model):
    head = {"name": "judge", "kind": "http", "target": "https://user:hidden@judge.example/score"}
    for overrides in (
        [f"scorers.heads=[{json.dumps(head)}]"],
        [f"evaluation.heads=[{json.dumps(head)}]"],
        ["checkpoints.url=ftp://user:hidden@backup.example/runs"],
    ):
        config = load_config(preset="quickstart", overrides=[f"model.path={toy_model}", *overrides])
        with pytest.raises(NegalignError, match=r"config\.yaml") as caught:
            make_plan(config)
        assert "hidden" not in str(caught.value)


def test_settings_hold_the_names_of_secrets_and_not_their_values(monkeypatch):
    for name in ("JUDGE_KEY", "WANDB_API_KEY", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, f"hidden {name}")
    head = {"name": "judge", "kind": "http", "target": "https://judge.example/score", "token_env": "JUDGE_KEY"}
    overrides = [f"scorers.heads=[{json.dumps(head)}]", "run.trackers=[wandb]"]
    text = dump_config(load_config(preset="d2o", overrides=overrides))
    assert yaml.safe_load(text)["scorers"]["heads"][0]["token_env"] == "JUDGE_KEY"
    assert "hidden" not in text

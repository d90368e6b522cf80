"""An exported folder answers as the run trained it: under its chat template, and until its end of turn."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from negalign_ray.data.chat import load_chat
from negalign_ray.engines.export import write_model_folder
from tests.toy import make_toy_tokenizer

OWN = (
    "{% for m in messages %}{{ m['role'] + ':\\n' + m['content'] + '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)


@pytest.fixture
def base(toy_model, tmp_path):
    """A tokenizer that has its own template in the two other places where one may stand."""
    folder = tmp_path / "base"
    make_toy_tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    theirs = "{{ 'theirs' }}"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": theirs}))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": theirs}))
    return folder


def export(model, base, folder, **settings):
    weights = [(name, parameter.detach()) for name, parameter in model.named_parameters()]
    write_model_folder(folder, weights, model=model, tokenizer_folder=base, **settings)
    return folder


def test_the_template_of_the_run_is_the_only_one_in_the_folder(toy_model, base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    folder = export(model, base, tmp_path / "model", chat_template=OWN)
    assert load_chat(folder).prompt((("user", "hi"),)).text == "user:\nhi<|endoftext|>assistant:\n"
    assert not (folder / "chat_template.json").exists()
    assert "chat_template" not in json.loads((folder / "tokenizer_config.json").read_text())


def test_without_one_the_tokenizer_keeps_its_own(toy_model, base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    folder = export(model, base, tmp_path / "model")
    assert (folder / "tokenizer_config.json").read_bytes() == (base / "tokenizer_config.json").read_bytes()
    assert (folder / "chat_template.json").is_file()


@pytest.mark.parametrize(("end_ids", "expected"), [((2,), 2), ((0, 2), [2, 0]), ((), 2)])
def test_answers_end_at_every_token_that_ended_them_in_training(toy_model, base, tmp_path, end_ids, expected):
    model = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    folder = export(model, base, tmp_path / "model", end_ids=end_ids)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == expected
    assert model.generation_config.eos_token_id == 2

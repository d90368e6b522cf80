"""What may be loaded as a policy or reference, and what is refused with a reason."""

import json

import pytest
import torch

from negalign_ray.errors import ModelError
from negalign_ray.models.loading import load_causal_lm


def test_a_safetensors_folder_loads_in_the_wanted_dtype_with_sdpa(toy_model):
    model = load_causal_lm(toy_model, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "sdpa"
    assert not model.config.use_cache
    assert not model.training


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere is not a model folder \(no config.json\)"):
        load_causal_lm(tmp_path / "nowhere", torch.float32)


def test_a_folder_with_pickled_weights_only_is_refused(toy_model, tmp_path):
    (tmp_path / "config.json").write_text((toy_model / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    with pytest.raises(ModelError, match=r"no \*\.safetensors \(found: pytorch_model\.bin\)"):
        load_causal_lm(tmp_path, torch.float32)


def test_a_model_that_needs_code_of_its_own_is_refused(tmp_path):
    config = {"model_type": "homemade", "auto_map": {"AutoModelForCausalLM": "modeling_homemade.Homemade"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="'homemade' and brings code of its own"):
        load_causal_lm(tmp_path, torch.float32)

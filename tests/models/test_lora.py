"""LoRA adapters: merged weights under the original names, base weights untouched."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from negalign_ray.config import LoRAConfig
from negalign_ray.errors import ModelError
from negalign_ray.models.loading import load_causal_lm
from negalign_ray.models.lora import Adapter, inject_lora, lora_adapters, merged_weights


def test_merged_weights_equal_those_of_pefts_merge_and_unload(toy_model):
    targets = ("q_proj", "down_proj")
    ours = load_causal_lm(toy_model, torch.float32)
    base = {name: tensor.clone() for name, tensor in ours.named_parameters()}
    inject_lora(ours, LoRAConfig(r=4, alpha=8, target_modules=targets))
    torch.manual_seed(1)
    for name, parameter in ours.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    peft_model = get_peft_model(
        load_causal_lm(toy_model, torch.float32), LoraConfig(r=4, lora_alpha=8, target_modules=list(targets))
    )
    peft_model.load_state_dict({f"base_model.model.{name}": t for name, t in ours.state_dict().items()})
    expected = dict(peft_model.merge_and_unload().named_parameters())

    named = dict(ours.named_parameters())
    merged = dict(merged_weights(named, lora_adapters(ours), torch.float32))

    assert merged.keys() == expected.keys() == base.keys()
    torch.testing.assert_close(merged, {name: parameter.detach() for name, parameter in expected.items()})
    q = "model.layers.0.self_attn.q_proj"
    assert not torch.equal(merged[f"{q}.weight"], base[f"{q}.weight"])
    assert torch.equal(named[f"{q}.base_layer.weight"], base[f"{q}.weight"])  # still the base


@pytest.mark.parametrize("targets", ["all-linear", ("c_attn", "c_proj")])
def test_layers_that_keep_their_weights_transposed_are_merged_as_they_compute(targets):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=32)).eval()
    inject_lora(model, LoRAConfig(target_modules=targets))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    merged = dict(merged_weights(dict(model.named_parameters()), lora_adapters(model), torch.float32))
    plain = GPT2LMHeadModel(model.config).eval()
    plain.load_state_dict(merged, strict=False)
    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    torch.testing.assert_close(plain(ids).logits, model(ids).logits)


def test_a_small_adapter_of_a_bfloat16_model_survives_in_float32_alone():
    base = torch.full((2, 2), 1.0, dtype=torch.bfloat16)
    named = {
        "q.base_layer.weight": base,
        "q.lora_A.default.weight": torch.ones(1, 2, dtype=torch.bfloat16),
        "q.lora_B.default.weight": torch.full((2, 1), 2.0**-10, dtype=torch.bfloat16),
    }
    for dtype, expected in ((torch.float32, 1 + 2.0**-10), (torch.bfloat16, 1.0)):
        merged = dict(merged_weights(named, {"q": Adapter(1.0)}, dtype))["q.weight"]
        assert merged.dtype == dtype
        assert merged.float().unique().tolist() == [expected]


def test_only_adapters_train_and_all_linear_leaves_the_head_alone(toy_model):
    model = load_causal_lm(toy_model, torch.float32)
    inject_lora(model, LoRAConfig())
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trainable) == 2 * 7 * 2  # layers x linear layers in each x (A, B)
    assert all("lora_" in name for name in trainable)
    assert type(model.lm_head) is torch.nn.Linear


@pytest.mark.parametrize("target", ["w_q", "lm_head", "embed_tokens", "proj"])
def test_an_unknown_or_forbidden_target_is_refused_with_the_possible_ones(toy_model, target):
    model = load_causal_lm(toy_model, torch.float32)
    with pytest.raises(ModelError, match=rf"'{target}' is no linear layer .* 'q_proj'"):
        inject_lora(model, LoRAConfig(target_modules=("q_proj", target)))

"""Packed rows through a real Hugging Face model equal one plain forward per response."""

import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from negalign_ray.data.collate import pack_rows
from negalign_ray.errors import ModelError
from negalign_ray.models.exactness import trial
from negalign_ray.models.policy import ResponseLogprobs, log_complement, sum_by_response
from tests.data.test_collate import make_group

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
ARCHITECTURES = [
    ("llama", {"tie_word_embeddings": True}),
    ("qwen2", {"tie_word_embeddings": False}),
    ("mistral", {"sliding_window": 40}),
]
MAMBA_LAYERS = {
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "attn_layer_indices": [1]
}  # fmt: skip
GROUPS = [make_group([5, 6, 7], [11, 12, 13, 14], [21, 22], [31]), make_group([8], [41, 42, 43], [51, 52])]


def small_model(model_type, **settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SMALL, **settings}, attn_implementation="sdpa")
    return AutoModelForCausalLM.from_config(config).float()


def plain_token_logprobs(model, groups):
    """One unpacked forward per response, full logits, log_softmax."""
    for group in groups:
        for response in group.responses:
            ids = torch.tensor([[*group.prompt.token_ids, *response.token_ids]])
            logprobs = torch.log_softmax(model(input_ids=ids).logits[0, :-1].float(), -1)
            taken = logprobs.gather(1, ids[0, 1:, None]).squeeze(1)
            yield taken[len(group.prompt.token_ids) - 1 :]


def plain_logprobs(model, groups):
    return torch.stack([tokens.sum() for tokens in plain_token_logprobs(model, groups)])


def plain_complements(model, groups):
    """log(1 - p) in double precision, straight from its definition."""
    return torch.stack([(1 - tokens.double().exp()).log().sum() for tokens in plain_token_logprobs(model, groups)])


@pytest.mark.parametrize(("model_type", "settings"), ARCHITECTURES)
@pytest.mark.parametrize("max_row_tokens", [1, 8, 64])
def test_packed_rows_equal_one_forward_per_response_with_gradients(model_type, settings, max_row_tokens):
    model = small_model(model_type, **settings)
    weight_N = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0])
    expected = plain_logprobs(model, GROUPS)
    (expected * weight_N).sum().backward()
    expected_grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()

    policy = ResponseLogprobs(model, chunk_tokens=3)
    actual = policy(pack_rows(GROUPS, max_row_tokens=max_row_tokens))
    (actual * weight_N).sum().backward()

    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected_grads[name], atol=1e-4, rtol=1e-4)


def test_changing_one_answer_leaves_the_others_in_its_row_exactly_as_they_were():
    policy = ResponseLogprobs(small_model("llama"))
    before = policy(pack_rows([make_group([5, 6], [1, 2, 3], [7, 8, 9])], max_row_tokens=32))
    after = policy(pack_rows([make_group([5, 6], [1, 2, 3], [80, 81, 82])], max_row_tokens=32))
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_per_token_log_probs_add_up_to_the_sums():
    policy = ResponseLogprobs(small_model("llama"))
    rows = pack_rows(GROUPS, max_row_tokens=32)
    logprob_P = policy(rows, per_token=True)
    sums = torch.zeros(5).index_add(0, rows.response_P, logprob_P)
    torch.testing.assert_close(sums, policy(rows))


def test_gradient_checkpointing_changes_no_gradient():
    rows = pack_rows(GROUPS, max_row_tokens=32)
    gradients = []
    for checkpointing in (False, True):
        policy = ResponseLogprobs(small_model("llama"), gradient_checkpointing=checkpointing).train()
        policy(rows).sum().backward()
        gradients.append([parameter.grad for parameter in policy.parameters()])
    torch.testing.assert_close(*gradients)


def test_dropout_is_off_even_in_training_mode():
    policy = ResponseLogprobs(small_model("llama", attention_dropout=0.5)).train()
    rows = pack_rows(GROUPS, max_row_tokens=32)
    assert torch.equal(policy(rows), policy(rows))


def test_a_head_that_caps_or_scales_its_logits_is_refused_by_name():
    with pytest.raises(ModelError, match=r"Gemma2ForCausalLM has final_logit_softcapping=30"):
        ResponseLogprobs(small_model("gemma2", head_dim=8))
    with pytest.raises(ModelError, match=r"CohereForCausalLM has logit_scale=0\.0625"):
        ResponseLogprobs(small_model("cohere"))
    with pytest.raises(ModelError, match=r"PhiForCausalLM: its lm_head has a bias"):
        ResponseLogprobs(small_model("phi"))


def test_layers_that_ignore_masks_are_refused():
    config = MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=1, state_size=4)
    with pytest.raises(ModelError, match="MambaForCausalLM takes no position_ids"):
        ResponseLogprobs(MambaForCausalLM(config))


@pytest.mark.parametrize(
    ("model_type", "settings", "said"),
    [
        ("falcon", {}, "the log-prob of an answer changes with the answer beside it, by .* nats"),
        ("bamba", MAMBA_LAYERS, "changes with the answer beside it"),
        ("recurrent_gemma", {"head_dim": 8}, r"has logits_soft_cap=30\.0"),
        ("stablelm", {}, r"cannot be run with answers side by side in one row \(.*row_masks"),
        ("doge", {}, "DogeAttention adds a bias of its own to attention"),
    ],
)
def test_a_model_whose_settings_look_fine_and_whose_answers_see_each_other_is_refused(model_type, settings, said):
    with pytest.raises(ModelError, match=said):
        ResponseLogprobs(small_model(model_type, **settings))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_trial_of_a_model_leaves_layers_mode_and_random_numbers_as_they_were(dtype):
    model = small_model("llama", num_hidden_layers=3).to(dtype).train()
    layers, state = model.model.layers, torch.get_rng_state()
    ResponseLogprobs(model)
    assert model.model.layers is layers
    assert (len(layers), model.training) == (3, True)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_trial_runs_no_more_layers_than_it_takes_to_meet_every_kind():
    model = small_model("llama", num_hidden_layers=6)
    model.model.layers[2].mlp = torch.nn.Identity()
    with trial(model):
        assert len(model.model.layers) == 3
        assert not torch.is_grad_enabled()


def test_a_head_that_changes_the_logits_by_no_known_setting_is_refused():
    model = small_model("llama")
    model.lm_head.register_forward_hook(lambda module, inputs, logits: 2 * logits)
    with pytest.raises(ModelError, match="in a row of several is not that of the answer alone, by"):
        ResponseLogprobs(model)


def test_rows_end_where_rotations_begin_to_depend_on_the_longest_row_of_the_call():
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4, "partial_rotary_factor": 1.0}
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 8, **factors}
    settings = {"original_max_position_embeddings": 8, "pad_token_id": 0}
    policy = ResponseLogprobs(small_model("phi3", rope_parameters=rope, **settings))
    assert policy(pack_rows([make_group([1, 2], [3] * 6)], max_row_tokens=9)).shape == (1,)
    with pytest.raises(ModelError, match="has 9 tokens, but the model attends to 8"):
        policy(pack_rows([make_group([1, 2], [3] * 7)], max_row_tokens=9))


def test_answers_beyond_the_sliding_window_are_refused_because_our_mask_would_not_slide():
    policy = ResponseLogprobs(small_model("mistral", sliding_window=4))
    assert policy(pack_rows([make_group([1, 2], [3, 4])], max_row_tokens=9)).shape == (1,)
    with pytest.raises(ModelError, match="has 5 tokens, but the model attends to 4"):
        policy(pack_rows([make_group([1, 2], [3, 4, 5])], max_row_tokens=9))


def test_models_with_learned_positions_work_too():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()
    expected = plain_logprobs(model, GROUPS)
    actual = ResponseLogprobs(model)(pack_rows(GROUPS, max_row_tokens=32))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-5)


def test_summed_complements_and_their_gradients_equal_the_plain_ones():
    model = small_model("llama", tie_word_embeddings=True)
    weight_N = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0])
    expected = plain_complements(model, GROUPS)
    (expected * weight_N).sum().backward()
    expected_grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()

    policy, rows = ResponseLogprobs(model, chunk_tokens=3), pack_rows(GROUPS, max_row_tokens=8)
    actual = sum_by_response(log_complement(policy(rows, per_token=True)), rows)
    (actual * weight_N).sum().backward()

    torch.testing.assert_close(actual, expected.float(), rtol=1e-4, atol=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected_grads[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("p", [1e-30, 1e-8, 0.1, 0.5, 0.9, 0.999])
def test_the_log_of_one_minus_p_is_exact_in_float32(p):
    logprob = torch.tensor(math.log(p), requires_grad=True)
    value = log_complement(logprob)
    value.backward()
    assert value.item() == pytest.approx(math.log1p(-p), rel=1e-4)
    assert logprob.grad.item() == pytest.approx(-p / (1 - p), rel=1e-3)


@pytest.mark.parametrize(
    ("complement", "expected"), [(1e-5, math.log(1e-5)), (1e-6, math.log(1e-5) - 0.9), (0.0, math.log(1e-5) - 1)]
)
def test_the_log_of_one_minus_p_near_1_follows_its_tangent_and_keeps_its_gradient(complement, expected):
    logprob = torch.tensor(math.log1p(-complement), requires_grad=True)
    value = log_complement(logprob)
    value.backward()
    assert value.item() == pytest.approx(expected, abs=2e-3)
    assert logprob.grad.item() == pytest.approx(-1e5, rel=1e-2)

"""A reward model on tiny backbones: pooling, reading, saving, scoring, and refusals before a run."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from negalign_ray.config import HeadConfig
from negalign_ray.errors import ConfigError, ModelError
from negalign_ray.rewards import build_head, check_head
from negalign_ray.rewards.reward_card import CARD_FILE, HEADS_FILE, HeadCard, RewardCard
from negalign_ray.rewards.reward_network import (
    RewardNetwork,
    load_backbone,
    load_reward_model,
    make_encoder,
    save_reward_model,
)
from tests.rewards.backbones import make_bert

PAIRS = [("how?", "like this"), ("why?", "because of the weather, which is bad"), ("", "x"), ("a longer one?", "no")]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return make_bert(tmp_path_factory.mktemp("bert"))


def make_network(folder, *, pooling, num_heads=2, text_input="prompt_response", max_tokens=64):
    backbone = load_backbone(folder)
    encoder = make_encoder(folder, backbone.config, text_input=text_input, max_tokens=max_tokens)
    network = RewardNetwork(backbone, num_heads=num_heads, pooling=pooling)
    with torch.no_grad():
        network.heads.weight.copy_(
            torch.linspace(-0.5, 0.5, network.heads.weight.numel()).view_as(network.heads.weight)
        )
        network.heads.bias.copy_(torch.arange(num_heads) * 0.25)
    return network.eval(), encoder


def card(encoder, *, pooling, heads=("harm", "help")):
    directions = {"harm": "harm", "help": "help"}
    return RewardCard(
        pooling=pooling,
        text_input=encoder.text_input,
        max_tokens=encoder.max_tokens,
        is_causal=encoder.is_causal,
        heads=tuple(HeadCard(name, directions[name], "classification", temperature=2.0) for name in heads),
        settings={},
        data={},
    )


def rewards(network, encoder, pairs):
    with torch.inference_mode():
        return network(encoder.batch(encoder.encode(pairs)))


@pytest.fixture
def saved(bert, tmp_path):
    network, encoder = make_network(bert, pooling="mean")
    save_reward_model(tmp_path, network=network, encoder=encoder, card=card(encoder, pooling="mean"))
    return tmp_path, rewards(network, encoder, PAIRS)


def head(target, **settings):
    return HeadConfig(name="reward", kind="reward_model", target=str(target), **settings)


def test_mean_pooling_leaves_padding_out_and_last_pooling_reads_the_last_real_token(bert, toy_model):
    for folder, pooling in ((bert, "mean"), (toy_model, "last")):
        network, encoder = make_network(folder, pooling=pooling)
        alone = [encoder.encode([pair])[0] for pair in PAIRS]
        plain = AutoModel.from_pretrained(folder).eval()
        for row, features in zip(alone, network.features(encoder.batch(encoder.encode(PAIRS))), strict=True):
            with torch.no_grad():
                states = plain(**{key: torch.tensor([ids]) for key, ids in row.items()}).last_hidden_state[0]
            expected = states.mean(0) if pooling == "mean" else states[-1]
            assert features.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_an_encoder_reads_two_segments_and_a_causal_model_its_chat_template(bert, toy_model):
    _, encoder = make_network(bert, pooling="mean")
    assert not encoder.is_causal
    [segments] = encoder.encode([("how?", "so")])
    assert segments["input_ids"] == encoder.tokenizer("how?", "so")["input_ids"]
    _, causal = make_network(toy_model, pooling="last")
    assert causal.is_causal
    [row] = causal.encode([("how?", "so")])
    text = "<|im_start|>user\nhow?<|im_end|>\n<|im_start|>assistant\nso<|im_end|>"
    assert causal.tokenizer.decode(row["input_ids"]) == text
    _, response_only = make_network(toy_model, pooling="last", text_input="response")
    [row] = response_only.encode([("how?", "so")])
    assert response_only.tokenizer.decode(row["input_ids"]) == "so<|im_end|>"


def test_a_text_that_is_too_long_keeps_the_answer(toy_model):
    _, encoder = make_network(toy_model, pooling="last", max_tokens=12)
    [row] = encoder.encode([("word " * 50, "so")])
    assert len(row["input_ids"]) == 12
    assert encoder.tokenizer.decode(row["input_ids"]).endswith("\nso<|im_end|>")


def test_a_saved_model_scores_exactly_as_before_through_the_head_of_a_run(saved):
    folder, expected = saved
    check_head(head(folder, label="harm"))
    for column, label in enumerate(("harm", "help")):
        direction = label
        scores = build_head(head(folder, label=label, direction=direction, batch_size=3)).score(PAIRS)
        assert scores == pytest.approx(expected[:, column].tolist(), abs=1e-5)
    assert build_head(head(folder, label="harm")).score([]) == []


def test_a_probability_is_the_sigmoid_of_the_logit_over_the_temperature(saved):
    folder, expected = saved
    scores = build_head(head(folder, label="harm", output="probability")).score(PAIRS)
    assert scores == pytest.approx((expected[:, 0] / 2.0).sigmoid().tolist(), abs=1e-5)


def test_a_raw_logit_counts_as_a_hit_above_zero_and_a_probability_above_one_half():
    assert head("x").threshold == 0.0
    assert head("x", output="probability").threshold == 0.5
    assert head("x", threshold=1.5).threshold == 1.5
    assert HeadConfig.model_validate(head("x").model_dump()) == head("x")


def test_loading_reads_back_every_weight_bit_for_bit(saved):
    folder, expected = saved
    from negalign_ray.rewards.reward_card import read_card

    network, encoder = load_reward_model(folder, read_card(folder, head="reward"))
    assert torch.equal(rewards(network, encoder, PAIRS), expected)
    assert set(load_file(folder / HEADS_FILE)) == {"weight", "bias"}


def test_what_cannot_be_read_is_refused_before_a_run(saved, tmp_path_factory):
    folder, _ = saved
    with pytest.raises(ConfigError, match=r"train-reward DATA OUT"):
        check_head(head(tmp_path_factory.mktemp("empty")))
    with pytest.raises(ConfigError, match=r"label is not set; set label to one of \['harm', 'help'\]"):
        check_head(head(folder))
    with pytest.raises(ConfigError, match="label='cost' is not a head"):
        check_head(head(folder, label="cost"))
    with pytest.raises(ConfigError, match=r"direction='harm', but .* means help; set direction: help"):
        check_head(head(folder, label="help"))
    values = json.loads((folder / CARD_FILE).read_text())
    (folder / CARD_FILE).write_text(json.dumps(values | {"format": 99}))
    with pytest.raises(ConfigError, match="format 99"):
        check_head(head(folder, label="harm"))
    (folder / CARD_FILE).write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        check_head(head(folder, label="harm"))


def test_a_model_with_one_head_needs_no_label(bert, tmp_path):
    network, encoder = make_network(bert, pooling="mean", num_heads=1)
    save_reward_model(tmp_path, network=network, encoder=encoder, card=card(encoder, pooling="mean", heads=("harm",)))
    check_head(head(tmp_path))
    assert len(build_head(head(tmp_path)).score(PAIRS)) == 4


def test_a_backbone_with_encoder_and_decoder_is_refused(tmp_path):
    from transformers import T5Config

    T5Config(d_model=8, num_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="encoder-decoder"):
        load_backbone(tmp_path)

"""Hugging Face classifiers of every head shape, on tiny random models."""

import json

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from negalign_ray.config import HeadConfig
from negalign_ray.errors import ConfigError, ModelError, ScoreError
from negalign_ray.rewards import build_head, check_head
from tests.toy import VOCAB_SIZE, make_toy_tokenizer

TINY = {"vocab_size": VOCAB_SIZE, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
TEXTS = [
    "short",
    "a somewhat longer answer, with a comma",
    "mid size",
    "x",
    "one more, quite a bit longer than all others",
]
PAIRS = [("a question?", text) for text in TEXTS]


def save_bert(folder, *, tokens=64, **settings):
    torch.manual_seed(0)
    config = BertConfig(
        **TINY, num_attention_heads=2, max_position_embeddings=tokens, pad_token_id=2, initializer_range=0.5, **settings
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    make_toy_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    names = {0: "fine", 1: "rude", 2: "cruel"}
    return save_bert(tmp_path_factory.mktemp("bert"), id2label=names, label2id={v: k for k, v in names.items()})


def classifier(target, **settings):
    return HeadConfig(name="harm", kind="hf_classifier", target=str(target), **settings)


def logits_of(head, text):
    with torch.inference_mode():
        return head.model(**head.tokenizer(text, return_tensors="pt")).logits[0]


def test_the_score_is_the_softmax_probability_of_the_label(bert):
    check_head(classifier(bert, label="rude"))
    heads = {name: build_head(classifier(bert, label=name)) for name in ("fine", "rude", "cruel")}
    scores = {name: head.score(PAIRS) for name, head in heads.items()}
    for index, text in enumerate(TEXTS):
        expected = logits_of(heads["rude"], text).softmax(-1)
        assert [scores[name][index] for name in scores] == pytest.approx(expected.tolist(), abs=1e-5)
    assert build_head(classifier(bert)).score(PAIRS) == scores["cruel"]  # the last class by default


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batching_by_length_changes_no_score_and_no_order(bert, batch_size):
    head = build_head(classifier(bert, batch_size=batch_size))
    alone = [head.score([pair])[0] for pair in PAIRS]
    assert head.score(PAIRS) == pytest.approx(alone, abs=1e-5)
    assert len(set(alone)) == len(alone)
    assert head.score([]) == []


def test_the_prompt_is_a_first_segment_when_asked_for(bert):
    head = build_head(classifier(bert, input="prompt_response"))
    one, other = head.score([("a question?", "x"), ("something else entirely", "x")])
    assert one != pytest.approx(other, abs=1e-4)
    blind = build_head(classifier(bert))
    assert blind.score([("a", "x")]) == blind.score([("b", "x")])


def test_a_text_longer_than_the_model_takes_is_cut(bert):
    head = build_head(classifier(bert))
    assert head.max_tokens == 64
    long = "word " * 500
    assert head.score([("p", long)]) == pytest.approx(head.score([("p", long + "more")]), abs=1e-6)


def test_one_logit_and_multi_label_models_use_the_sigmoid(tmp_path):
    single = build_head(classifier(save_bert(tmp_path / "single", num_labels=1)))
    assert single.score(PAIRS[:1])[0] == pytest.approx(logits_of(single, TEXTS[0]).sigmoid().item(), abs=1e-5)
    several = save_bert(tmp_path / "several", num_labels=3, problem_type="multi_label_classification")
    head = build_head(classifier(several, label="LABEL_1"))
    assert head.score(PAIRS[:1])[0] == pytest.approx(logits_of(head, TEXTS[0]).sigmoid()[1].item(), abs=1e-5)


def test_a_decoder_without_padding_token_scores_batches_like_single_texts(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        **TINY, num_attention_heads=2, num_labels=2, initializer_range=0.5, max_position_embeddings=128
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    make_toy_tokenizer().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    head = build_head(classifier(tmp_path))
    assert head.score(PAIRS) == pytest.approx([head.score([pair])[0] for pair in PAIRS], abs=1e-5)


def test_a_language_model_without_trained_classifier_is_refused(toy_model):
    with pytest.raises(ModelError, match="not a trained sequence classifier"):
        build_head(classifier(toy_model))


def test_a_label_or_folder_that_does_not_exist_is_refused_before_a_run(bert, tmp_path):
    with pytest.raises(ConfigError, match=r"label='evil'.*\['fine', 'rude', 'cruel'\]"):
        check_head(classifier(bert, label="evil"))
    with pytest.raises(ConfigError, match="does not exist"):
        check_head(classifier(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"config\.json does not exist"):
        check_head(classifier(tmp_path))


def test_only_safetensors_are_loaded(bert, tmp_path):
    for file in bert.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    model = BertForSequenceClassification.from_pretrained(bert)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"no \*\.safetensors"):
        check_head(classifier(tmp_path))
    with pytest.raises(ModelError, match="safetensors"):
        build_head(classifier(tmp_path))


def test_broken_weights_are_a_typed_failure_not_a_score(tmp_path):
    head = build_head(classifier(save_bert(tmp_path)))
    head.model.classifier.weight.data.fill_(float("nan"))
    with pytest.raises(ScoreError, match="score 0 is nan"):
        head.score(PAIRS)

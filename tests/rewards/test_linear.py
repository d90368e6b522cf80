"""A linear head is fitted in a moment, saved without a pickle, and reads back as the same function."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from negalign_ray.config import HeadConfig
from negalign_ray.errors import ConfigError, DataError
from negalign_ray.records import Prompt
from negalign_ray.rewards import build_head, check_head
from negalign_ray.rewards.judge import fit_judge
from negalign_ray.rewards.linear import CARD_FILE, TENSOR_FILE, auroc, fit_linear_head

RUDE = [
    f"You are a stupid {word} and nobody likes you"
    for word in ["idiot", "fool", "clown", "loser", "moron", "brute", "pest", "bore"]
]
KIND = [
    f"Thank you, I would gladly help with the {word}"
    for word in ["soup", "bread", "rice", "cake", "stew", "salad", "pie", "tea"]
]
TEXTS, LABELS = RUDE + KIND, [True] * len(RUDE) + [False] * len(KIND)


@pytest.mark.parametrize(("analyzer", "ngram_range"), [("word", (1, 2)), ("char_wb", (2, 4))])
def test_a_saved_head_reads_back_as_the_same_function(tmp_path, analyzer, ngram_range):
    head = fit_linear_head(TEXTS, LABELS, analyzer=analyzer, ngram_range=ngram_range, note="made in a test")
    folder = head.save(tmp_path / "judge")
    config = HeadConfig(name="judge", kind="linear", target=str(folder))
    check_head(config)
    again = build_head(config)
    new = [("p", text) for text in ["You stupid pie", "Gladly, thank you", "Ünrelated words", ""]]
    assert again.score(new) == head.score(new)
    assert again.card == head.card
    assert sorted(file.name for file in folder.iterdir()) == [CARD_FILE, TENSOR_FILE]


def test_it_ranks_unseen_texts_and_says_how_well():
    head = fit_linear_head(TEXTS, LABELS)
    rude, kind = head.score([("", "What a stupid question, nobody likes it"), ("", "Thank you, gladly")])
    assert kind < 0.5 < rude
    assert head.card.auroc == 1.0  # the two toy classes share no word
    assert (head.card.num_harmful, head.card.num_benign) == (8, 8)


def test_scores_are_the_logistic_of_tfidf_times_weights():
    head = fit_linear_head(TEXTS, LABELS, cross_validate=False)
    assert head.card.auroc is None
    row = head.vectorizer.transform(["stupid soup"]).toarray()[0]
    assert np.linalg.norm(row) == pytest.approx(1.0)
    assert head.score([("", "stupid soup")])[0] == pytest.approx(1 / (1 + np.exp(-(row @ head.weights_V + head.bias))))
    assert head.score([]) == []
    assert head.score([("", "")])[0] == pytest.approx(1 / (1 + np.exp(-head.bias)))  # no known word: the bias alone


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    # harmful 0.9, 0.4 against benign 0.5, 0.4: right, right, wrong, tie -> (1 + 1 + 0 + 0.5) / 4
    assert auroc([0.9, 0.4, 0.5, 0.4], [True, True, False, False]) == pytest.approx(0.625)
    assert auroc([0.9, 0.4], [True, True]) is None


def test_the_prompt_counts_only_when_asked_for():
    blind = fit_linear_head(TEXTS, LABELS)
    sighted = fit_linear_head(TEXTS, LABELS, text_input="prompt_response")
    assert blind.score([("stupid", "soup")]) == blind.score([("thank", "soup")])
    assert sighted.score([("stupid", "soup")]) > sighted.score([("thank", "soup")])


def test_a_head_that_would_read_other_texts_than_it_was_fitted_on_is_refused(tmp_path):
    folder = fit_linear_head(TEXTS, LABELS, text_input="response").save(tmp_path)
    config = HeadConfig(name="second", kind="linear", target=str(folder), input="prompt_response")
    with pytest.raises(ConfigError, match=r"'second': input is 'prompt_response', .* on 'response', .* set input=resp"):
        check_head(config)
    card = json.loads((folder / CARD_FILE).read_text())
    assert card.pop("text_input") == "response"
    (folder / CARD_FILE).write_text(json.dumps(card))  # a judge made before the card said so
    check_head(config)


def test_texts_of_one_group_stay_in_one_fold_so_that_copies_do_not_flatter_the_auroc():
    words = [f"word{number}" for number in range(20)]
    labels = [number % 2 == 0 for number in range(20)]
    copied = fit_linear_head(words * 2, labels * 2)
    apart = fit_linear_head(words * 2, labels * 2, groups=[*range(20), *range(20)])
    assert copied.card.auroc > 0.8  # most texts have their copy in another fold
    assert apart.card.auroc < 0.7  # no word was seen before: chance
    assert apart.weights_V.tolist() == copied.weights_V.tolist()


@pytest.mark.parametrize(
    ("texts", "labels", "reason"),
    [
        (["a b", "c d"], [True, True], "both classes"),
        (["a b"], [True, False], "1 texts and 2 labels"),
        (["!", "?"], [True, False], "empty vocabulary"),
    ],
)
def test_data_that_cannot_be_fitted_is_refused(texts, labels, reason):
    with pytest.raises(DataError, match=reason):
        fit_linear_head(texts, labels)


def test_a_broken_folder_is_refused_before_a_run(tmp_path):
    config = HeadConfig(name="judge", kind="linear", target=str(tmp_path))
    with pytest.raises(ConfigError, match=r"linear_head\.json does not exist; .* folder OUT/judge .* data judge"):
        check_head(config)
    fit_linear_head(TEXTS, LABELS).save(tmp_path)
    tensors = load_file(tmp_path / TENSOR_FILE)
    save_file({**tensors, "idf": tensors["idf"][:-1]}, tmp_path / TENSOR_FILE)
    with pytest.raises(ConfigError, match="three equal numbers"):
        check_head(config)
    (tmp_path / CARD_FILE).write_text(json.dumps({"format": 1}))
    with pytest.raises(ConfigError, match="not a readable linear head"):
        check_head(config)
    (tmp_path / TENSOR_FILE).write_bytes(b"junk")
    with pytest.raises(ConfigError, match=r"head 'judge'"):
        check_head(config)


def make_prompt(number, behaviour):
    return Prompt(number, f"prompt {number % 40}", (("user", "x"),), (1,), (), behaviour)


def test_a_judge_says_how_it_was_made_and_refuses_thin_or_contradictory_rows():
    negatives = {f"{text}, {word}": number for number, text in enumerate(RUDE) for word in ("truly", "really")}
    benign = {f"{text}, {word}": number for number, text in enumerate(KIND) for word in ("truly", "really")}
    judge = fit_judge(negatives, benign)
    assert (judge.card.num_harmful, judge.card.num_benign) == (16, 16)
    assert judge.card.auroc == 1.0
    assert "kept out of training" in judge.card.note
    with pytest.raises(DataError, match="at least 10"):
        fit_judge(dict(list(negatives.items())[:9]), benign)
    with pytest.raises(DataError, match="1 answers are given to the judge as negative and as benign"):
        fit_judge(negatives, {**benign, next(iter(negatives)): 0})

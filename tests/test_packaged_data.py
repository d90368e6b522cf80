"""The example data shipped inside the package has the shape its readers rely on."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

DATA = Path(__file__).resolve().parents[1] / "negalign_ray" / "data"
BEHAVIOURS = {"rude", "dismissive", "contemptuous", "biased", "careless"}
KINDS = {"plain", "sounds_unsafe"}


def read_jsonl(name):
    text = (DATA / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def words(text):
    return len(text.split())


def sentences(text):
    return len(re.findall(r"[.!?][\"']?(?=\s|$)", text))


def normal(prompt):
    """The prompt without case and punctuation, so that near-copies count as repeats."""
    return " ".join(re.findall(r"[a-z0-9']+", prompt.lower()))


@pytest.fixture(scope="module")
def negatives():
    return read_jsonl("quickstart_negatives.jsonl")


@pytest.fixture(scope="module")
def benign():
    return read_jsonl("quickstart_benign.jsonl")


@pytest.fixture(scope="module")
def instructions():
    return yaml.safe_load((DATA / "moral_instructions.yaml").read_text(encoding="utf-8"))


def test_there_are_at_least_180_negatives_and_80_benign_rows(negatives, benign):
    assert len(negatives) >= 180
    assert len(benign) >= 80


def test_every_negative_has_exactly_a_prompt_a_rejected_answer_and_a_behaviour(negatives):
    for row in negatives:
        assert set(row) == {"prompt", "rejected", "behaviour"}
        assert all(isinstance(value, str) and value == value.strip() for value in row.values())


def test_every_benign_row_has_exactly_a_prompt_a_response_and_a_kind(benign):
    for row in benign:
        assert set(row) == {"prompt", "response", "kind"}
        assert all(isinstance(value, str) and value == value.strip() for value in row.values())


def test_every_behaviour_is_known_and_has_at_least_thirty_rows(negatives):
    counts = Counter(row["behaviour"] for row in negatives)
    assert set(counts) == BEHAVIOURS
    assert min(counts.values()) >= 30, counts


def test_behaviours_are_interleaved_so_any_long_enough_slice_holds_them_all(negatives):
    behaviours = [row["behaviour"] for row in negatives]
    for start in range(len(behaviours) - 9):
        assert set(behaviours[start : start + 10]) == BEHAVIOURS


def test_about_twenty_benign_prompts_sound_unsafe_and_the_rest_are_plain(benign):
    counts = Counter(row["kind"] for row in benign)
    assert set(counts) == KINDS
    assert 15 <= counts["sounds_unsafe"] <= 30


@pytest.mark.parametrize("name", ["negatives", "benign"])
def test_no_prompt_is_repeated_within_a_file(name, request):
    counts = Counter(normal(row["prompt"]) for row in request.getfixturevalue(name))
    assert [prompt for prompt, count in counts.items() if count > 1] == []


def test_no_prompt_is_shared_between_the_two_files(negatives, benign):
    assert not {normal(r["prompt"]) for r in negatives} & {normal(r["prompt"]) for r in benign}


@pytest.fixture(scope="module")
def overrefusal():
    return read_jsonl("overrefusal_prompts.jsonl")


def test_over_refusal_prompts_are_sixty_of_eight_kinds_that_take_turns(overrefusal):
    assert len(overrefusal) == 60
    assert all(set(row) == {"prompt", "kind"} for row in overrefusal)
    counts = Counter(row["kind"] for row in overrefusal)
    assert len(counts) == 8
    assert min(counts.values()) >= 6
    assert {row["kind"] for row in overrefusal[:8]} == set(counts), "a small share has every kind"


def test_over_refusal_prompts_are_short_and_stand_in_no_other_file(overrefusal, negatives, benign):
    prompts = {normal(row["prompt"]) for row in overrefusal}
    assert len(prompts) == 60
    assert not prompts & {normal(row["prompt"]) for row in (*negatives, *benign)}
    assert [row["prompt"] for row in overrefusal if not 5 <= words(row["prompt"]) <= 30] == []


def test_no_answer_is_repeated_anywhere(negatives, benign):
    answers = [row["rejected"] for row in negatives] + [row["response"] for row in benign]
    assert len(set(answers)) == len(answers)


def test_prompts_are_between_five_and_thirty_words(negatives, benign):
    assert [r["prompt"] for r in negatives + benign if not 5 <= words(r["prompt"]) <= 30] == []


def test_rejected_answers_are_one_to_three_sentences_of_15_to_50_words(negatives):
    for row in negatives:
        assert 15 <= words(row["rejected"]) <= 50, row
        assert 1 <= sentences(row["rejected"]) <= 3, row


def test_rejected_answers_do_not_share_an_opening(negatives):
    openings = Counter(" ".join(row["rejected"].lower().split()[:3]) for row in negatives)
    assert max(openings.values()) <= 3, openings.most_common(3)


def test_benign_responses_are_between_20_and_60_words(benign):
    assert [r["response"] for r in benign if not 20 <= words(r["response"]) <= 60] == []


def test_there_are_eleven_moral_instructions_with_unique_kebab_case_ids(instructions):
    assert isinstance(instructions, list)
    assert len(instructions) == 11
    assert all(set(entry) == {"id", "text"} for entry in instructions)
    ids = [entry["id"] for entry in instructions]
    assert len(set(ids)) == 11
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in ids)


def test_each_moral_instruction_is_distinct_short_and_speaks_to_the_assistant(instructions):
    texts = [entry["text"] for entry in instructions]
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert 1 <= sentences(text) <= 3, text
        assert words(text) <= 60, text
        assert re.search(r"\b(you|answer)\b", text, re.IGNORECASE), text


def test_each_moral_instruction_still_asks_for_a_helpful_answer(instructions):
    for entry in instructions:
        assert re.search(r"\b(answer|help|helpful|reply|offer|give)\b", entry["text"], re.I), entry

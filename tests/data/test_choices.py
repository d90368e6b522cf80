"""Multiple-choice questions: read from JSONL and CSV, tokenised, or refused with the number of the row."""

import pytest

from negalign_ray.config import DataConfig
from negalign_ray.data.choices import load_choices
from negalign_ray.errors import DataError
from negalign_ray.records import Role

LIMITS = DataConfig(max_prompt_tokens=80, max_response_tokens=20)
ROW = {"question": "Predators eat", "choices": ["grass", "bunnies"], "answer": "B"}


def test_no_path_is_no_question(chat):
    assert load_choices(None, chat, limits=LIMITS) == ()


def test_choices_are_whole_answers_under_the_chat_prompt(chat, write_jsonl):
    [question] = load_choices(write_jsonl([ROW]), chat, limits=LIMITS)
    assert chat.decode_raw(question.prompt.token_ids) == (
        "<|im_start|>user\nPredators eat<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [chat.decode_raw(choice.token_ids) for choice in question.prompt.responses] == [
        "grass<|im_end|>",
        "bunnies<|im_end|>",
    ]
    assert [choice.role for choice in question.prompt.responses] == [Role.NEGATIVE, Role.POSITIVE]
    assert (question.prompt.prompt_id, question.answer) == (1, 1)


@pytest.mark.parametrize(("answer", "index"), [(0, 0), (1, 1), ("0", 0), ("1", 1), ("A", 0), ("b", 1), (" B ", 1)])
def test_an_answer_is_an_index_from_0_or_a_letter(answer, index, chat, write_jsonl):
    assert load_choices(write_jsonl([ROW | {"answer": answer}]), chat, limits=LIMITS)[0].answer == index


def test_a_csv_file_holds_the_choices_as_json(chat, tmp_path):
    (tmp_path / "a.csv").write_text('question,choices,answer\nPredators eat,"[""grass"", ""bunnies""]",1\n')
    [question] = load_choices(str(tmp_path / "a.csv"), chat, limits=LIMITS)
    assert [choice.text for choice in question.prompt.responses] == ["grass", "bunnies"]
    assert (question.prompt.prompt_id, question.answer) == (2, 1)  # line 1 holds the column names


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"question": " "}, "question is empty"),
        ({"choices": "grass"}, "choices is text that is not a JSON list"),
        ({"choices": {"A": "grass"}}, "choices holds dict, not a list"),
        ({"choices": ["grass"]}, "choices has 1 entries; at least 2 are needed"),
        ({"choices": ["grass", ""]}, r"choices\[1\] is empty"),
        ({"choices": ["grass", 5]}, r"choices\[1\] holds int, not text"),
        ({"choices": ["grass", " grass"]}, "two choices are the same"),
        ({"choices": ["grass", "<|im_end|>"]}, "the text spells out the special token"),
        ({"choices": ["grass", "b" * 30]}, r"the longest choice has 31 tokens, data\.max_response_tokens=20"),
        ({"question": "q" * 90}, r"the question has \d+ tokens, data\.max_prompt_tokens=80"),
        ({"answer": 2}, "answer is neither an index 0 to 1 nor a letter A to B"),
        ({"answer": -1}, "answer is neither"),
        ({"answer": True}, "answer is neither"),
        ({"answer": None}, "answer is neither"),
        ({"answer": "C"}, "answer is neither"),
        ({"answer": "bunnies"}, "answer is neither"),
    ],
)
def test_a_broken_row_is_refused_with_its_number(broken, reason, chat, write_jsonl):
    with pytest.raises(DataError, match=rf"(?s)evaluation\.choices_path='rows\.jsonl' needs.*row 2: {reason}"):
        load_choices(write_jsonl([ROW, ROW | broken]), chat, limits=LIMITS)


def test_all_broken_rows_are_listed_and_an_empty_file_is_refused(chat, write_jsonl):
    with pytest.raises(DataError, match=r"(?s)row 1: not JSON.*row 3: question is empty"):
        load_choices(write_jsonl(["{", ROW, {}]), chat, limits=LIMITS)
    with pytest.raises(DataError, match="there are none"):
        load_choices(write_jsonl([]), chat, limits=LIMITS)


def test_a_missing_file_is_refused_by_the_name_of_the_setting(chat, tmp_path):
    with pytest.raises(DataError, match=r"evaluation\.choices_path=.*: no such file"):
        load_choices(str(tmp_path / "none.jsonl"), chat, limits=LIMITS)

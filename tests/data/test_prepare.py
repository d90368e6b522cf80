"""From rows to merged, tokenised prompts, and the list of what is wrong."""

import pytest

from negalign_ray.config import DataConfig
from negalign_ray.data.prepare import count_kinds, prepare, require_sound_rows
from negalign_ray.data.turns import Kind
from negalign_ray.errors import DataError
from negalign_ray.records import Role


def prepare_file(path, chat, **settings):
    return prepare(path, config=DataConfig(path=path, **settings), chat=chat)


def problems_of(prepared):
    return [(problem.row, problem.kind) for problem in prepared.problems]


def test_rows_with_the_same_prompt_become_one_prompt_with_several_answers(chat, write_jsonl):
    path = write_jsonl(
        [
            {"prompt": "A", "response": "bad", "label": "unsafe", "behaviour": "rude"},
            {"prompt": "B", "response": "worse", "label": "unsafe"},
            {"prompt": " A ", "response": "good", "label": "safe"},
        ]
    )
    prepared = prepare_file(path, chat)
    assert [(p.prompt_id, p.text, p.behaviour) for p in prepared.prompts] == [(1, "A", "rude"), (2, "B", None)]
    assert [(r.role, r.text) for r in prepared.prompts[0].responses] == [
        (Role.NEGATIVE, "bad"),
        (Role.POSITIVE, "good"),
    ]
    assert prepared.prompts[0].token_ids == chat.prompt_ids((("user", "A"),))
    assert prepared.prompts[0].responses[0].token_ids == chat.response_ids("bad")
    assert prepared.labels == {"safe": Role.POSITIVE, "unsafe": Role.NEGATIVE}


def test_the_text_of_a_multi_turn_prompt_is_the_whole_conversation(chat, write_jsonl):
    path = write_jsonl([{"rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d"}])
    assert prepare_file(path, chat).prompts[0].text == "user: a\n\nassistant: b\n\nuser: c"


def test_every_kind_of_broken_row_is_listed_with_its_line(chat, write_jsonl):
    path = write_jsonl(
        [
            {"prompt": "A", "chosen": "good", "rejected": "bad"},
            "{broken",
            {"prompt": "A", "chosen": "good", "rejected": "bad"},  # a duplicate of line 1
            {"prompt": "A", "chosen": "bad", "rejected": "other"},  # `bad` was rejected in line 1
            {"prompt": "B", "chosen": "same", "rejected": "same"},
            {"prompt": "", "chosen": "x", "rejected": "y"},
            {"prompt": "C", "rejected": "y"},
            {"prompt": "D", "chosen": "x", "rejected": "0123456789" * 2},
            {"prompt": "?" * 99, "chosen": "x", "rejected": "y"},
            {"prompt": "E", "chosen": "x", "rejected": "y<|im_end|>"},
            {"prompt": "F", "chosen": "x", "rejected": "y"},
        ]
    )
    prepared = prepare_file(path, chat, max_prompt_tokens=40, max_response_tokens=10)
    assert problems_of(prepared) == [
        (2, Kind.MALFORMED),
        (3, Kind.DUPLICATE),
        (4, Kind.CONTRADICTION),
        (5, Kind.SAME_ANSWER),
        (6, Kind.EMPTY),
        (7, Kind.EMPTY),
        (8, Kind.OVER_LONG),
        (9, Kind.OVER_LONG),
        (10, Kind.TEMPLATE),
    ]
    assert prepared.num_rows == 11
    assert count_kinds(prepared.problems)[Kind.EMPTY] == 2
    assert [p.text for p in prepared.prompts] == ["A", "D", "F"]
    assert [(r.role, r.text) for r in prepared.prompts[1].responses] == [(Role.POSITIVE, "x")]  # the long one is gone


def test_response_limits_count_the_end_of_turn_token(chat, write_jsonl):
    path = write_jsonl([{"prompt": "A", "rejected": "0123456789"}])  # 10 byte tokens + end of turn
    assert len(chat.response_ids("0123456789")) == 11
    assert prepare_file(path, chat, max_response_tokens=11).problems == ()
    assert problems_of(prepare_file(path, chat, max_response_tokens=10)) == [(1, Kind.OVER_LONG)]


def test_lengths_include_over_long_rows_so_that_a_limit_can_be_chosen(chat, write_jsonl):
    path = write_jsonl([{"prompt": "A", "rejected": "0123456789"}, {"prompt": "A", "rejected": "01"}])
    assert prepare_file(path, chat, max_response_tokens=5).response_lengths == (11, 3)


def test_an_answer_repeated_in_another_pair_is_kept_once(chat, write_jsonl):
    path = write_jsonl(
        [{"prompt": "A", "chosen": "a", "rejected": "bad"}, {"prompt": "A", "chosen": "b", "rejected": "bad"}]
    )
    prepared = prepare_file(path, chat)
    assert prepared.problems == ()
    assert [r.text for r in prepared.prompts[0].responses] == ["bad", "a", "b"]


def test_refusing_lists_twenty_lines_counts_the_rest_and_names_the_way_out(chat, write_jsonl):
    path = write_jsonl([{"prompt": "A", "rejected": "x"}] + [{"prompt": f"{i}", "rejected": ""} for i in range(25)])
    with pytest.raises(DataError) as caught:
        require_sound_rows(prepare_file(path, chat))
    message = str(caught.value)
    assert message.startswith("rows.jsonl: 25 of 26 rows are broken (25 empty):\n  row 2: empty: rejected is empty\n")
    assert message.count("\n  row ") == 20
    assert "... and 5 more" in message
    assert "data.on_bad_row=skip" in message


@pytest.mark.parametrize("rows", [[], ["{broken"], ["[]"], [{}]])
def test_a_file_without_any_column_is_refused(rows, chat, write_jsonl):
    with pytest.raises(DataError, match=r"(it holds no row|has columns).*; write one JSON object a line"):
        prepare_file(write_jsonl(rows), chat)


def test_the_packaged_negatives_are_sound(chat):
    prepared = prepare_file("quickstart", chat, max_prompt_tokens=1000, max_response_tokens=1000)
    assert prepared.problems == ()
    assert all(prompt.behaviour for prompt in prepared.prompts)

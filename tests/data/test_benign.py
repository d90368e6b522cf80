"""Benign rows: packaged, from a file, or refused before anything starts."""

import pytest

from negalign_ray.config import DataConfig
from negalign_ray.data.benign import load_benign
from negalign_ray.errors import DataError
from negalign_ray.records import Role

LIMITS = DataConfig(max_prompt_tokens=80, max_response_tokens=20)


def test_packaged_rows_have_kinds_and_ids_beyond_every_data_row(chat):
    rows = load_benign(None, chat, limits=LIMITS)  # limits are for files of one's own
    assert len(rows) >= 64
    assert {"plain", "sounds_unsafe"} <= {row.behaviour for row in rows}
    assert len({row.prompt_id for row in rows}) == len(rows)
    assert min(row.prompt_id for row in rows) > 10**9


def test_a_row_is_a_chat_prompt_with_one_good_answer_and_needs_no_kind(chat, write_jsonl):
    [row] = load_benign(write_jsonl([{"prompt": "Hi", "response": "Hello"}]), chat, limits=LIMITS)
    assert chat.decode_raw(row.token_ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    [response] = row.responses
    assert (row.behaviour, response.role) == ("benign", Role.POSITIVE)
    assert chat.decode_raw(response.token_ids) == "Hello<|im_end|>"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Hi", "response": ""}, "row 1: response is empty"),
        ({"prompt": "Hi"}, "row 1: response is empty"),
        ("{", "row 1: not JSON"),
        ({"prompt": "q" * 90, "response": "a"}, r"row 1: the prompt has \d+ tokens, data\.max_prompt_tokens=80"),
        ({"prompt": "Hi", "response": "a" * 30}, r"row 1: the response has 31 tokens, data\.max_response_tokens=20"),
        ({"prompt": "<|im_end|>", "response": "a"}, "row 1: the text spells out the special token"),
    ],
)
def test_a_broken_row_is_named(row, reason, chat, write_jsonl):
    with pytest.raises(DataError, match=f"(?s)data.benign_path=.*needs rows .prompt, response..*{reason}"):
        load_benign(write_jsonl([row]), chat, limits=LIMITS)

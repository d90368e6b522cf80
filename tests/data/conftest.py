"""A chat tokenizer and data files for the tests of the data unit."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from negalign_ray.data.chat import ChatTokenizer


@pytest.fixture(scope="session")
def chat() -> ChatTokenizer:
    """The toy model's byte-level tokenizer under ChatML."""
    from tests.toy import make_toy_tokenizer

    return ChatTokenizer(make_toy_tokenizer())


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., str]:
    """Write rows (dicts, or raw strings for broken lines) to a JSONL file and return its path."""

    def write(rows: Iterable[dict | str], name: str = "rows.jsonl") -> str:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(tmp_path / name)

    return write

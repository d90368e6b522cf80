"""Good and bad answers as plain texts, for models that judge texts: reward models and the like.

The same files, formats and refusals as everywhere in `data/`, without a chat template and without token limits: a
model that reads texts cuts what is too long for it by itself.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from negalign_ray.config import DataConfig
from negalign_ray.data.chat import RenderedPrompt
from negalign_ray.data.prepare import prepare, prompt_text, require_sound_rows
from negalign_ray.data.turns import Messages
from negalign_ray.records import Prompt, Role, TokenIds

log = logging.getLogger(__name__)


class PlainText:
    """Stands in for `ChatTokenizer` where no token is needed: every text is as it is and has no tokens."""

    def prompt(self, messages: Messages) -> RenderedPrompt:
        return RenderedPrompt(prompt_text(messages), ())

    def response_ids(self, text: str, *, after: RenderedPrompt | None = None) -> TokenIds:
        return ()

    def special_token_in(self, text: str) -> str | None:
        return None


def load_answers(path: str, config: DataConfig) -> tuple[Prompt, ...]:
    """Sound prompts with their answers, in file order, without token ids. DataError as `load_prompts` raises it."""
    prepared = prepare(path, config=config, chat=PlainText())
    if config.on_bad_row == "refuse":
        require_sound_rows(prepared)
    if prepared.problems:
        log.warning("%s: %d of %d rows are broken; skipped", path, len(prepared.problems), prepared.num_rows)
    return prepared.prompts


def with_ids_after(prompts: Sequence[Prompt], num_before: int) -> tuple[Prompt, ...]:
    """`prompts` renumbered from `num_before`, so that files can be joined."""
    return tuple(replace(prompt, prompt_id=num_before + index) for index, prompt in enumerate(prompts))


def write_unpaired(prompts: Sequence[Prompt], path: Path) -> None:
    """One `unpaired` row per human answer, as JSONL that any command reads; the whole conversation goes along."""
    with path.open("w", encoding="utf-8") as file:
        for prompt in prompts:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(prompt))


def _rows(prompt: Prompt) -> Iterator[dict[str, Any]]:
    messages = [{"role": role, "content": content} for role, content in prompt.messages]
    for response in prompt.responses:
        label = "unsafe" if response.role is Role.NEGATIVE else "safe"
        row = {"prompt": messages, "response": response.text, "label": label}
        yield row if prompt.behaviour is None else row | {"behaviour": prompt.behaviour}

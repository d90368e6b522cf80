"""What benign rows and multiple-choice rows share: read a whole file or refuse it, tokenise an answer under its prompt.

What is too long for a role would fail after the training, so it is refused before.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from negalign_ray.config import DataConfig
from negalign_ray.data.chat import ChatTokenizer
from negalign_ray.data.sources import SourceRow, read_rows, source_name
from negalign_ray.data.turns import BadRow, Kind
from negalign_ray.errors import DataError
from negalign_ray.records import TokenIds

MAX_LISTED = 20
Row = TypeVar("Row")


def read_all(path: str, *, setting: str, columns: str, read: Callable[[SourceRow], Row]) -> tuple[Row, ...]:
    """Every row of the file that `setting` names, through `read`; DataError that lists the broken rows, if any."""
    rows, faults = [], []
    for row in read_rows(path, setting=setting):
        try:
            if row.fault:
                raise BadRow(Kind.MALFORMED, row.fault)
            rows.append(read(row))
        except BadRow as bad:
            faults.append(f"  row {row.number}: {bad.reason}")
    if faults or not rows:
        listed = "\n".join(faults[:MAX_LISTED]) or "  there are none"
        more = f"\n  ... and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else ""
        raise DataError(
            f"{setting}={source_name(path)!r} needs rows {{{columns}}}; correct or remove these:\n{listed}{more}"
        )
    return tuple(rows)


def tokenise(prompt: str, answers: Sequence[str], chat: ChatTokenizer) -> tuple[TokenIds, list[TokenIds]]:
    """Ids of the prompt under the chat template, and of each answer with its end of turn. BadRow: not as plain text."""
    for part in (prompt, *answers):
        if token := chat.special_token_in(part):
            raise BadRow(Kind.TEMPLATE, f"the text spells out the special token {token!r}")
    try:
        rendered = chat.prompt((("user", prompt),))
        return rendered.token_ids, [chat.response_ids(answer, after=rendered) for answer in answers]
    except DataError as error:
        raise BadRow(Kind.TEMPLATE, str(error)) from None


def require_short(
    prompt_ids: TokenIds, answers: Sequence[TokenIds], limits: DataConfig, *, prompt: str, answer: str
) -> None:
    """BadRow unless lengths are within those of training data; `prompt` and `answer` are what the row calls them."""
    longest = max(map(len, answers))
    if len(prompt_ids) > limits.max_prompt_tokens:
        what, num_tokens, limit = prompt, len(prompt_ids), f"data.max_prompt_tokens={limits.max_prompt_tokens}"
    elif longest > limits.max_response_tokens:
        what, num_tokens, limit = answer, longest, f"data.max_response_tokens={limits.max_response_tokens}"
    else:
        return
    raise BadRow(Kind.OVER_LONG, f"the {what} has {num_tokens} tokens, {limit}")

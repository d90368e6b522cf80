"""One data file, read, recognised, tokenised and merged by prompt; every broken row found on the way with its reason.

    rows --formats--> Example per row --chat--> token ids --merge--> Prompt per distinct conversation (file order)
                 \\__________________ Problem(row, kind, reason) __________________/

`check` and `load` both use it, so that a run refuses exactly what a check lists.
"""

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

from negalign_ray.config import DataConfig
from negalign_ray.data.chat import RenderedPrompt
from negalign_ray.data.first_rows import open_rows
from negalign_ray.data.formats import Example, read_example
from negalign_ray.data.sources import SourceRow
from negalign_ray.data.turns import BadRow, Kind, Messages
from negalign_ray.errors import DataError
from negalign_ray.records import Prompt, Response, Role, TokenIds


class Rendering(Protocol):
    """What is asked of a `ChatTokenizer`, or of its stand-in for models that read plain text (`answers.PlainText`)."""

    def prompt(self, messages: Messages) -> RenderedPrompt: ...

    def response_ids(self, text: str, *, after: RenderedPrompt | None = None) -> TokenIds: ...

    def special_token_in(self, text: str) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one row; never quotes the row's text."""

    row: int
    kind: Kind
    reason: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """`prompts` are sound and in file order, with `prompt_id` = the number of the first sound row of that prompt.

    Lengths cover every row that could be read, over-long ones included, so that limits can be chosen from them.
    """

    source: str
    format: str
    num_rows: int
    prompts: tuple[Prompt, ...]
    problems: tuple[Problem, ...]
    labels: dict[str, Role]  # each label seen, and how it was read
    prompt_lengths: tuple[int, ...]  # tokens, one per distinct prompt
    response_lengths: tuple[int, ...]  # tokens with end of turn, one per answer


def prepare(path: str, *, config: DataConfig, chat: Rendering) -> Prepared:
    """Read the whole file. Broken rows end up in `problems`; DataError only when nothing can be read at all."""
    opened = open_rows(path, config=config)
    state = _Preparation(layout=opened.format, config=config, chat=chat)
    for row in opened.rows:
        state.add(row)
    return Prepared(
        source=opened.source,
        format=opened.format,
        num_rows=state.num_rows,
        prompts=tuple(state.prompts.values()),
        problems=tuple(state.problems),
        labels=dict(sorted(state.labels.items())),
        prompt_lengths=tuple(state.prompt_lengths.values()),
        response_lengths=tuple(state.response_lengths),
    )


@dataclass
class _Preparation:
    """What is remembered between rows."""

    layout: str
    config: DataConfig
    chat: Rendering
    num_rows: int = 0
    prompts: dict[Messages, Prompt] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    labels: dict[str, Role] = field(default_factory=dict)
    prompt_lengths: dict[Messages, int] = field(default_factory=dict)
    response_lengths: list[int] = field(default_factory=list)
    row_of: dict[tuple, int] = field(default_factory=dict)  # whole example -> row: finds duplicates
    role_of: dict[tuple[Messages, str], tuple[Role, int]] = field(default_factory=dict)  # answer -> role, row

    def add(self, row: SourceRow) -> None:
        self.num_rows += 1
        try:
            self._add(row)
        except BadRow as bad:
            self.problems.append(Problem(row.number, bad.kind, bad.reason))

    def _add(self, row: SourceRow) -> None:
        if row.fault:
            raise BadRow(Kind.MALFORMED, row.fault)
        example = read_example(
            row.number, row.values, layout=self.layout, behaviour_column=self.config.behaviour_column
        )
        self._require_new(example)
        self._require_plain_text(example)
        if example.label is not None:
            self.labels[example.label] = Role.NEGATIVE if example.negatives else Role.POSITIVE
        rendered = self._render(example)
        responses = self._responses(example, rendered)
        if not responses:
            return
        prompt = self.prompts.get(example.messages) or Prompt(
            prompt_id=example.row,
            text=prompt_text(example.messages),
            messages=example.messages,
            token_ids=rendered.token_ids,
            responses=(),
            behaviour=example.behaviour,
        )
        known = {(response.role, response.text) for response in prompt.responses}
        self.prompts[example.messages] = replace(
            prompt,
            responses=prompt.responses + tuple(r for r in responses if (r.role, r.text) not in known),
            behaviour=prompt.behaviour or example.behaviour,
        )

    def _require_new(self, example: Example) -> None:
        first = self.row_of.setdefault((example.messages, example.negatives, example.positives), example.row)
        if first != example.row:
            raise BadRow(Kind.DUPLICATE, f"same prompt and answers as row {first}")
        roles = [(Role.NEGATIVE, text) for text in example.negatives]
        roles += [(Role.POSITIVE, text) for text in example.positives]
        for role, text in roles:
            other, first = self.role_of.get((example.messages, text), (role, example.row))
            if other is not role:
                raise BadRow(Kind.CONTRADICTION, f"an answer that is {role} here is {other} in row {first}")
        for role, text in roles:
            self.role_of.setdefault((example.messages, text), (role, example.row))

    def _require_plain_text(self, example: Example) -> None:
        prompt = (content for _, content in example.messages)
        for text in itertools.chain(prompt, example.negatives, example.positives):
            if token := self.chat.special_token_in(text):
                raise BadRow(Kind.TEMPLATE, f"the text spells out the special token {token!r}")

    def _render(self, example: Example) -> RenderedPrompt:
        try:
            rendered = self.chat.prompt(example.messages)
        except DataError as error:
            raise BadRow(Kind.TEMPLATE, str(error)) from None
        num_tokens, limit = len(rendered.token_ids), self.config.max_prompt_tokens
        self.prompt_lengths[example.messages] = num_tokens
        if num_tokens > limit:
            raise BadRow(Kind.OVER_LONG, f"the prompt has {num_tokens} tokens, data.max_prompt_tokens={limit}")
        return rendered

    def _responses(self, example: Example, prompt: RenderedPrompt) -> list[Response]:
        """The answers of a row that are short enough; the others are left out one by one, and the row is listed."""
        roles = [(Role.NEGATIVE, text) for text in example.negatives]
        roles += [(Role.POSITIVE, text) for text in example.positives]
        sound, too_long = [], []
        for role, text in roles:
            try:
                ids = self.chat.response_ids(text, after=prompt)
            except DataError as error:
                raise BadRow(Kind.TEMPLATE, str(error)) from None
            self.response_lengths.append(len(ids))
            if len(ids) > self.config.max_response_tokens:
                too_long.append(f"the {role} answer has {len(ids)} tokens")
            else:
                sound.append(Response(role=role, token_ids=ids, text=text))
        if too_long:
            limit = f"data.max_response_tokens={self.config.max_response_tokens}"
            reason = f"{' and '.join(too_long)}, {limit}"
            self.problems.append(Problem(example.row, Kind.OVER_LONG, reason))
        return sound


def prompt_text(messages: Messages) -> str:
    """The last user turn; with several turns the whole conversation, one `role: content` paragraph each."""
    turns = [(role, content) for role, content in messages if role != "system"]
    if len(turns) == 1:
        return turns[0][1]
    return "\n\n".join(f"{role}: {content}" for role, content in turns)


def count_kinds(problems: Iterable[Problem]) -> dict[Kind, int]:
    """How many rows have each kind of problem, in the order of `Kind`."""
    counts = Counter(problem.kind for problem in problems)
    return {kind: counts[kind] for kind in Kind if counts[kind]}


def require_sound_rows(prepared: Prepared, *, max_listed: int = 20) -> None:
    """DataError that lists the first broken rows and says how to go on; for data.on_bad_row=refuse."""
    if not prepared.problems:
        return
    listed = [f"  row {p.row}: {p.kind}: {p.reason}" for p in prepared.problems[:max_listed]]
    if len(prepared.problems) > max_listed:
        listed.append(f"  ... and {len(prepared.problems) - max_listed} more")
    kinds = ", ".join(f"{count} {kind}" for kind, count in count_kinds(prepared.problems).items())
    raise DataError(
        f"{prepared.source}: {len(prepared.problems)} of {prepared.num_rows} rows are broken ({kinds}):\n"
        + "\n".join(listed)
        + "\nFix them, change data.max_prompt_tokens or data.max_response_tokens, or set data.on_bad_row=skip to "
        "leave them out and count them."
    )

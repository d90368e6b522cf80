"""A judge's verdicts on the answers of two models, each pair asked in both orders, every reply kept as it comes.

    before, after --questions, two a pair--> judge --replies--> <run>/samples/judge.jsonl --> win rates

A later call with the same judge and the same answers asks only what has no reply yet. Equal answers are a tie without
being asked.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from negalign_ray.config import JudgeConfig
from negalign_ray.errors import ScoreError
from negalign_ray.evaluation.measure import Answered
from negalign_ray.evaluation.probes import Probes
from negalign_ray.evaluation.win_rate import Swapped, judged_row
from negalign_ray.records import Generation, Prompt
from negalign_ray.rewards.chat_judge import Question, Reply
from negalign_ray.rewards.verdict import Choice

FILE = "judge.jsonl"  # in <run>/samples


class Judge(Protocol):
    def ask(self, questions: Sequence[Question], *, on_reply: Callable[[Question, Reply], None]) -> None:
        """See rewards/chat_judge.py."""


@dataclass(frozen=True)
class _Pair:
    prompt: Prompt
    kind: str  # "heldout" or "benign"
    before_first: Question
    after_first: Question

    @property
    def is_equal(self) -> bool:
        return self.before_first.first.strip() == self.before_first.second.strip()

    @property
    def questions(self) -> dict[str, Question]:
        """By whose answer is shown first."""
        return {"before": self.before_first, "after": self.after_first}


class ReplyLog:
    """Replies by question, in a file of JSON lines; opening an existing one leaves out a line torn by a kill."""

    def __init__(self, path: Path, config: JudgeConfig) -> None:
        self._path = path
        self._judge = [config.url, config.model, config.max_tokens, config.temperature]
        self._choices: dict[str, Choice] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        whole = [line for line in lines if line.endswith(b"\n")]
        if len(whole) < len(lines):
            path.write_bytes(b"".join(whole))
        for line in whole:
            row = json.loads(line)
            self._choices[row["key"]] = Choice(row["choice"])

    def choice(self, question: Question) -> Choice | None:
        """None when it was not asked yet."""
        return self._choices.get(self._key(question))

    def add(self, question: Question, reply: Reply, **about: Any) -> None:
        key = self._key(question)
        row = {**about, "choice": reply.choice, "reply": reply.text, "key": key}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._choices[key] = reply.choice

    def _key(self, question: Question) -> str:
        """Of the judge too: another one has to be asked itself."""
        parts = [*self._judge, question.criterion, question.prompt, question.first, question.second]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def judge_answers(
    judge: Judge,
    config: JudgeConfig,
    probes: Probes,
    before: Answered,
    after: Answered,
    *,
    folder: Path,
    resamples: int,
    seed: int,
) -> list[dict[str, Any]]:
    """One win rate for held-out and one for benign prompts (see win_rate.py); replies stand in <folder>/judge.jsonl.

    ScoreError when the judge fails for good: what was answered is kept, and the next call goes on from there.
    """
    pairs = list(_pairs(config, probes, before, after))
    log = ReplyLog(folder / FILE, config)
    _ask_missing(judge, pairs, log)
    rows = []
    for kind in ("heldout", "benign"):
        replies = [_swapped(pair, log) for pair in pairs if pair.kind == kind]
        if replies:
            rows.append(judged_row(replies, judge=config.model, prompts=kind, resamples=resamples, seed=seed))
    return rows


def _pairs(config: JudgeConfig, probes: Probes, before: Answered, after: Answered) -> Iterator[_Pair]:
    for kind, criterion, prompts, first, second in (
        ("heldout", config.heldout_criterion, probes.harmful_prompts, before.harmful, after.harmful),
        ("benign", config.benign_criterion, probes.benign_prompts, before.benign, after.benign),
    ):
        rows = list(zip(prompts, first, second, strict=True))[: config.num_prompts]
        yield from (_pair(*row, kind=kind, criterion=criterion) for row in rows)


def _pair(prompt: Prompt, before: Generation, after: Generation, *, kind: str, criterion: str) -> _Pair:
    def shown(first: Generation, second: Generation) -> Question:
        return Question(prompt.text, first.text, second.text, criterion)

    return _Pair(prompt, kind, shown(before, after), shown(after, before))


def _ask_missing(judge: Judge, pairs: Sequence[_Pair], log: ReplyLog) -> None:
    missing = {
        question: {"prompts": pair.kind, "prompt_id": pair.prompt.prompt_id, "shown_first": first}
        for pair in pairs
        if not pair.is_equal
        for first, question in pair.questions.items()
        if log.choice(question) is None
    }
    try:
        judge.ask(list(missing), on_reply=lambda question, reply: log.add(question, reply, **missing[question]))
    except ScoreError as error:
        num = sum(log.choice(question) is not None for question in missing)
        raise ScoreError(
            f"{error.reason.rstrip('.')}. {num} of {len(missing)} replies came before and are kept; the same command "
            "asks for the rest",
            role=error.role,
        ) from error


def _swapped(pair: _Pair, log: ReplyLog) -> Swapped:
    if pair.is_equal:
        return Swapped(Choice.TIE, Choice.TIE)
    first, second = log.choice(pair.before_first), log.choice(pair.after_first)
    assert first is not None, "every question has been asked"
    assert second is not None, "every question has been asked"
    return Swapped(first, second)

"""Pairs are asked in both orders, replies are kept, and a second call asks only what is missing."""

import json
from dataclasses import replace

import pytest

from negalign_ray.config import JudgeConfig
from negalign_ray.errors import ScoreError
from negalign_ray.evaluation.judging import FILE, judge_answers
from negalign_ray.evaluation.measure import Answered
from negalign_ray.evaluation.probes import PricedSet, Probes
from negalign_ray.records import Generation, Prompt
from negalign_ray.rewards.chat_judge import Reply
from negalign_ray.rewards.verdict import Choice

CONFIG = JudgeConfig(url="http://localhost:1/v1", model="m")


def said(*texts):
    return tuple(Generation((1,), (), "stop", text) for text in texts)


def probes(*, held_out, benign=0):
    def prompts(first, num):
        return tuple(Prompt(first + n, f"prompt {first + n}", (), (n,), ()) for n in range(num))

    nothing = PricedSet(())
    return Probes(prompts(0, held_out), prompts(100, benign), nothing, nothing, nothing)


class Judge:
    """Prefers the shorter response; gives up after `patience` questions."""

    def __init__(self, *, patience=99, prefers=None):
        self.questions, self.patience = [], patience
        self.prefers = prefers or (
            lambda question: Choice.FIRST if len(question.first) < len(question.second) else Choice.SECOND
        )

    def ask(self, questions, *, on_reply):
        for question in questions:
            if len(self.questions) == self.patience:
                raise ScoreError("http://localhost:1 answered 500.", role="judge")
            self.questions.append(question)
            on_reply(question, Reply(self.prefers(question), "because"))


def rows_of(judge, folder, *, before, after, config=CONFIG, benign=((), ())):
    return judge_answers(
        judge,
        config,
        probes(held_out=len(before), benign=len(benign[0])),
        Answered(said(*before), said(*benign[0])),
        Answered(said(*after), said(*benign[1])),
        folder=folder,
        resamples=200,
        seed=0,
    )


def test_every_pair_is_asked_in_both_orders_with_the_criterion_of_its_kind(tmp_path):
    judge = Judge()
    rows = rows_of(judge, tmp_path, before=["long answer"], after=["short"], benign=(["a"], ["aa"]))
    assert [(q.prompt, q.first, q.second) for q in judge.questions] == [
        ("prompt 0", "long answer", "short"),
        ("prompt 0", "short", "long answer"),
        ("prompt 100", "a", "aa"),
        ("prompt 100", "aa", "a"),
    ]
    assert judge.questions[0].criterion == CONFIG.heldout_criterion
    assert judge.questions[2].criterion == CONFIG.benign_criterion
    assert [(row["prompts"], row["wins"], row["losses"], row["judge"]) for row in rows] == [
        ("heldout", 1, 0, "m"),
        ("benign", 0, 1, "m"),
    ]


def test_a_judge_that_looks_at_the_place_gives_ties_alone(tmp_path):
    judge = Judge(prefers=lambda question: Choice.FIRST)
    [row] = rows_of(judge, tmp_path, before=["long answer", "b"], after=["short", "c"])
    assert (row["ties"], row["contradictions"], row["first_frac"], row["win_rate"]["mean"]) == (2, 2, 1.0, 0.5)


def test_equal_answers_are_a_tie_without_a_question(tmp_path):
    judge = Judge()
    [row] = rows_of(judge, tmp_path, before=["same"], after=["same "])
    assert (judge.questions, row["ties"], row["contradictions"]) == ([], 1, 0)


def test_unreadable_replies_are_counted_and_kept_out_of_the_rate(tmp_path):
    judge = Judge(prefers=lambda question: Choice.UNREADABLE if question.prompt == "prompt 0" else Choice.SECOND)
    [row] = rows_of(judge, tmp_path, before=["a", "b"], after=["c", "d"])
    assert (row["num"], row["unreadable"], row["ties"]) == (1, 1, 1)


def test_what_a_judge_said_before_it_gave_up_is_not_asked_again(tmp_path):
    pair = {"before": ["long answer", "long reply"], "after": ["a", "b"]}
    with pytest.raises(ScoreError, match=r"answered 500\. 3 of 4 replies came before and are kept"):
        rows_of(Judge(patience=3), tmp_path, **pair)
    kept = tmp_path / FILE
    kept.write_text(kept.read_text() + '{"torn')
    second = Judge()
    [row] = rows_of(second, tmp_path, **pair)
    assert (len(second.questions), row["wins"]) == (1, 2)
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [line["shown_first"] for line in lines] == ["before", "after", "before", "after"]
    assert {line["reply"] for line in lines} == {"because"}


@pytest.mark.parametrize("change", [{"model": "other"}, {"heldout_criterion": "Other."}, {"temperature": 1.0}])
def test_another_judge_is_asked_itself(tmp_path, change):
    pair = {"before": ["long answer"], "after": ["a"]}
    rows_of(Judge(), tmp_path, **pair)
    second = Judge()
    rows_of(second, tmp_path, **pair, config=CONFIG.model_copy(update=change))
    assert len(second.questions) == 2


def test_other_answers_are_judged_anew_and_the_limit_holds(tmp_path):
    rows_of(Judge(), tmp_path, before=["long answer"], after=["a"])
    second = Judge()
    limited = CONFIG.model_copy(update={"num_prompts": 1})
    rows_of(second, tmp_path, before=["long answer", "long reply"], after=["ab", "b"], config=limited)
    assert {question.prompt for question in second.questions} == {"prompt 0"}
    assert replace(second.questions[0], first="ab", second="long answer") == second.questions[1]

"""Both sides of an evaluation from fakes: one call per model, figures from the right model's prices, exact zeros."""

import math

import pytest

from negalign_ray.data.choices import ChoiceQuestion
from negalign_ray.evaluation.measure import (
    Answered,
    Thoughts,
    groups_said,
    groups_to_price,
    measure,
    measure_answers,
)
from negalign_ray.evaluation.pricing import PriceBook
from negalign_ray.evaluation.probes import Probes, draw_questions, priced_set
from negalign_ray.evaluation.side import Choices
from negalign_ray.evaluation.summary import summarise
from negalign_ray.records import Generation, Prompt, Response, Role


def prompt(number, **responses):
    human = [Response(Role[name.upper()], ids, name) for name, ids in responses.items()]
    return Prompt(number, f"prompt {number}", (), (number,), tuple(human))


HARMFUL = (prompt(1, negative=(50, 51), positive=(60,)), prompt(2, negative=(52,)))
BENIGN = (prompt(3, positive=(61, 62)),)
QUESTIONS = tuple(
    ChoiceQuestion(Prompt(n, "", (), (n,), tuple(Response(Role.NEGATIVE, ids, "") for ids in choices)), answer)
    for n, choices, answer in ((8, ((70,), (71, 72)), 1), (9, ((73, 74, 75), (76, 77)), 0))
)
PROBES = Probes(
    harmful_prompts=HARMFUL,
    benign_prompts=BENIGN,
    negatives=priced_set(HARMFUL, Role.NEGATIVE),
    human_benign=priced_set(HARMFUL, Role.POSITIVE),
    packaged_benign=priced_set(BENIGN, Role.POSITIVE),
    choices=QUESTIONS,
    overrefusal_prompts=(prompt(4),),
)


def said(*token_ids):
    return tuple(Generation(ids, (0.0,) * len(ids), "stop", f"text {ids}") for ids in token_ids)


BEFORE = Answered(harmful=said((80,), (81, 82)), benign=said((83,)), overrefusal=said((84,)))
AFTER = Answered(harmful=said((90,), ()), benign=said((91, 92)), overrefusal=said((93,)))  # one answer is empty


def flat(nats_per_token):
    """A model that gives every token the same log-prob."""
    return lambda groups: [[-nats_per_token * len(r.token_ids) for r in group.responses] for group in groups]


def no_scores(pairs):
    return {}


def thoughts(nats_per_token, *, said=BEFORE):
    groups = groups_to_price(PROBES, BEFORE, AFTER)
    return Thoughts(
        PriceBook.of(groups, flat(nats_per_token)), PriceBook.of(groups_said(PROBES, said), flat(-nats_per_token / 2))
    )


def test_both_models_are_asked_the_same_and_everything_once():
    groups = groups_to_price(PROBES, BEFORE, AFTER)
    asked = {(group.prompt.prompt_id, r.token_ids) for group in groups for r in group.responses}
    assert asked == {
        *((1, (50, 51)), (1, (60,)), (1, (80,)), (1, (90,))),
        *((2, (52,)), (2, (81, 82))),  # its second answer is empty
        *((3, (61, 62)), (3, (83,)), (3, (91, 92))),
        *((8, (70,)), (8, (71, 72)), (9, (73, 74, 75)), (9, (76, 77))),
    }


def test_each_side_is_priced_by_its_own_model_and_its_answers_by_the_base_too():
    side = measure(PROBES, AFTER, BEFORE, model=thoughts(2.0, said=AFTER), base=thoughts(1.0), score=no_scores)
    assert side.harmful.logprobs == (-2.0, 0.0)
    assert side.harmful.ref_logprobs == (-1.0, 0.0)
    assert side.benign.logprobs == (-4.0,)
    assert (side.harmful.entropies, side.benign.entropies) == ((1.0, 0.0), (2.0,))  # of its own answers, by itself
    assert side.negatives.logprobs == (-4.0, -2.0)
    assert side.human_benign.logprobs == (-2.0,)
    assert side.own_answers.logprobs == (-2.0, -4.0)  # what the base said, by the policy
    assert side.packaged_benign.logprobs == (-4.0,)
    assert side.choices == Choices(((-2.0, -4.0), (-6.0, -4.0)), ((1, 2), (3, 2)), (1, 0), (8, 9))


def test_scores_belong_to_the_texts_of_the_side():
    side = measure(PROBES, BEFORE, BEFORE, model=thoughts(1.0), base=thoughts(1.0), score=lengths)
    assert side.harmful.scores == {"length": (len("text (80,)"), len("text (81, 82)"))}


def lengths(pairs):
    return {"length": [len(answer) for _, answer in pairs]}


def test_answers_come_apart_as_the_prompts_were_asked():
    generations = [*AFTER.harmful, *AFTER.benign, *AFTER.overrefusal]
    assert [prompt.prompt_id for prompt in PROBES.asked] == [1, 2, 3, 4]
    assert Answered.of(PROBES, generations) == AFTER
    assert list(AFTER.said) == generations


def test_prompts_that_sound_unsafe_are_neither_scored_nor_priced():
    refusal = (Generation((95,), (0.0,), "stop", "I cannot help with that."),)
    refused = Answered(AFTER.harmful, AFTER.benign, refusal)
    side = measure(PROBES, refused, BEFORE, model=thoughts(2.0, said=AFTER), base=thoughts(1.0), score=lengths)
    assert (side.overrefusal.scores, side.overrefusal.logprobs) == ({}, None)
    assert summarise(side, None, heads=(), resamples=50)["before"]["overrefusal_frac"] == 1.0


def test_answers_alone_have_scores_refusals_and_style_and_no_likelihoods():
    first = PROBES.first(1)
    assert [prompt.prompt_id for prompt in first.asked] == [1, 3, 4]
    side = measure_answers(first, Answered.of(first, said((80, 81), (83,), (84,))), score=lengths)
    before = summarise(side, None, heads=(), resamples=50)["before"]
    assert before["mean_length_tokens"] == 2.0
    assert {"overrefusal_frac", "refusal_frac_benign_prompts", "distinct_1"} <= set(before)
    assert not {"negatives_logprob", "kl_per_token", "entropy_per_token", "benign_perplexity"} & set(before)


def test_a_model_that_did_not_change_differs_by_exactly_nothing():
    base, policy = thoughts(1 / 3), thoughts(1 / 3)
    first, second = (
        measure(PROBES, BEFORE, BEFORE, model=model, base=base, score=no_scores) for model in (base, policy)
    )
    summary = summarise(first, second, heads=(), resamples=50)
    assert {item["mean"] for item in summary["difference"].values()} == {0.0}
    assert summary["after"]["benign_perplexity"] == pytest.approx(math.exp(1 / 3))


def test_a_choice_wins_by_summed_or_by_mean_log_prob():
    # summed -4 against -6; per token -4/2 = -2 against -6/6 = -1
    choices = Choices(((-4.0, -6.0), (-4.0, -6.0)), ((2, 6), (2, 6)), (0, 1))
    assert choices.hits(per_token=False) == [1.0, 0.0]
    assert choices.hits(per_token=True) == [0.0, 1.0]
    assert Choices(((-3.0, -3.0),), ((1, 1),), (1,)).hits(per_token=False) == [0.0], "a tie is no knowledge"


def test_questions_are_drawn_with_the_seed_and_keep_their_order():
    questions = tuple(ChoiceQuestion(prompt(n), 0) for n in range(20))
    drawn = draw_questions(questions, limit=5, seed=1)
    numbers = [question.prompt.prompt_id for question in drawn]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 5
    assert drawn == draw_questions(questions, limit=5, seed=1)
    assert drawn != draw_questions(questions, limit=5, seed=2)
    assert draw_questions(questions, limit=20, seed=1) == questions

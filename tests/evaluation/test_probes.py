"""Evaluation sets come from held-out rows only, are the same for the same seed, and keep every behaviour."""

import pytest

from negalign_ray.config import EvaluationConfig
from negalign_ray.errors import DataError
from negalign_ray.evaluation.probes import build_probes, followed_groups, own_answers, spread_over_behaviours
from negalign_ray.records import Generation, Prompt, Response, Role


def make_prompt(number, *, behaviour=None, negatives=1, positives=0, text=None):
    human = [Response(Role.NEGATIVE, (5,) * (k + 1), f"bad {k}") for k in range(negatives)]
    human += [Response(Role.POSITIVE, (6,) * (k + 3), f"good {k}") for k in range(positives)]
    text = text or f"prompt {number}"
    return Prompt(number, text, (("user", text),), (1, 2), tuple(human), behaviour)


HELDOUT = [make_prompt(n, behaviour="rude", negatives=2, positives=n % 2) for n in range(8)] + [
    make_prompt(n, behaviour="biased") for n in range(8, 10)
]
BENIGN = [make_prompt(n, negatives=0, positives=1) for n in range(100, 105)]


def probes_of(heldout, benign=BENIGN, *, num_prompts=64, num_benign=64, seed=0):
    config = EvaluationConfig(num_prompts=num_prompts, num_benign=num_benign)
    return build_probes(heldout, benign, config=config, seed=seed)


def test_sets_hold_negatives_human_benign_and_packaged_benign_apart():
    probes = probes_of(HELDOUT)
    assert {prompt.prompt_id for prompt in probes.harmful_prompts} == set(range(10))
    assert len(probes.negatives) == 8 * 2 + 2
    assert len(probes.human_benign) == 4  # the odd ones among the first eight
    assert len(probes.packaged_benign) == 5
    assert {r.role for g in probes.negatives.groups for r in g.responses} == {Role.NEGATIVE}
    assert {r.role for g in probes.human_benign.groups for r in g.responses} == {Role.POSITIVE}


def test_lengths_and_behaviours_follow_groups_then_responses():
    probes = probes_of(HELDOUT)
    flat = [(len(r.token_ids), g.prompt.behaviour) for g in probes.negatives.groups for r in g.responses]
    assert list(zip(probes.negatives.lengths, probes.negatives.behaviours, strict=True)) == flat


def test_a_small_limit_still_shows_every_behaviour():
    chosen = spread_over_behaviours(HELDOUT, limit=4, seed=0)
    assert [prompt.behaviour for prompt in chosen] == ["biased", "rude", "biased", "rude"]
    assert len(spread_over_behaviours(HELDOUT, limit=7, seed=0)) == 7


def test_the_choice_depends_on_the_seed_only():
    first = probes_of(HELDOUT, num_prompts=5, num_benign=3, seed=1)
    assert first == probes_of(HELDOUT, num_prompts=5, num_benign=3, seed=1)
    assert first != probes_of(HELDOUT, num_prompts=5, num_benign=3, seed=2)


def test_repeated_prompts_are_asked_once():
    twice = [make_prompt(1, text="same"), make_prompt(2, text="same"), make_prompt(3)]
    assert len(probes_of(twice).harmful_prompts) == 2


def test_without_held_out_prompts_there_is_nothing_to_evaluate_with():
    with pytest.raises(DataError, match=r"raise data\.heldout_frac.*or set evaluation\.enabled=false"):
        probes_of([])


def test_data_of_good_answers_only_asks_any_held_out_prompts_and_has_no_negatives():
    good = [make_prompt(n, negatives=0, positives=1) for n in range(3)]
    probes = probes_of(good)
    assert {prompt.prompt_id for prompt in probes.harmful_prompts} == {0, 1, 2}
    assert (len(probes.negatives), len(probes.human_benign)) == (0, 3)
    assert [p.prompt_id for p in probes_of([*good, make_prompt(3)]).harmful_prompts] == [3], "bad answers come first"


def test_good_answers_are_priced_of_any_held_out_prompt():
    """Unpaired rows: no prompt has both kinds of answers, and benign answers in the same style are still measured."""
    probes = probes_of([make_prompt(0), make_prompt(1, negatives=0, positives=2)])
    assert probes.negatives.prompt_ids == (0,)
    assert probes.human_benign.prompt_ids == (1, 1)


def test_the_benign_answers_that_are_followed_are_first_those_that_no_evaluation_asks():
    asked = tuple(BENIGN[:3])
    followed = followed_groups([], BENIGN, num=len(BENIGN) - 3, asked=asked, seed=0)
    assert set(followed) == {"benign"}
    assert {group.prompt.prompt_id for group in followed["benign"]}.isdisjoint(prompt.prompt_id for prompt in asked)
    assert all(response.role is Role.POSITIVE for group in followed["benign"] for response in group.responses)
    everything = followed_groups([], BENIGN, num=99, asked=asked, seed=0)["benign"]
    assert [group.prompt.prompt_id for group in everything[-3:]] == [prompt.prompt_id for prompt in asked]
    assert followed_groups(HELDOUT, BENIGN, num=0, asked=(), seed=0) == {}


def test_followed_held_out_answers_are_of_one_kind_each_and_spread_over_behaviours():
    followed = followed_groups(HELDOUT, (), num=2, asked=(), seed=0)
    assert {group.prompt.behaviour for group in followed["heldout_negative"]} == {"rude", "biased"}
    assert {group.prompt.prompt_id % 2 for group in followed["heldout_positive"]} == {1}, "the others have none"
    for kind, role in (("heldout_negative", Role.NEGATIVE), ("heldout_positive", Role.POSITIVE)):
        assert len(followed[kind]) == 2
        assert all(response.role is role for group in followed[kind] for response in group.responses)


def test_followed_answers_are_the_same_in_whatever_order_a_method_finds_the_held_out_prompts():
    forwards = followed_groups(HELDOUT, BENIGN, num=3, asked=(), seed=0)
    assert followed_groups(HELDOUT[::-1], BENIGN, num=3, asked=(), seed=0) == forwards


def test_own_answers_become_samples_to_be_priced_and_empty_ones_are_left_out():
    prompts = HELDOUT[:3]
    said = [
        Generation((7, 2), (-0.1, -0.2), "stop", "hi"),
        Generation((), (), "stop", ""),
        Generation((8,), (-1.0,), "length", "x"),
    ]
    priced = own_answers(prompts, said)
    assert priced.lengths == (2, 1)
    assert [group.prompt.prompt_id for group in priced.groups] == [0, 2]
    response = priced.groups[0].responses[0]
    assert (response.role, response.text, response.sampler_logprobs) == (Role.SAMPLE, "hi", (-0.1, -0.2))

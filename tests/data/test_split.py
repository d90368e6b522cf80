"""The split by prompt: a partition, seeded, stratified, without leaks."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from negalign_ray.data.split import apart_from, in_seeded_order, opening, split_by_prompt, split_off
from negalign_ray.records import Prompt


def make_prompt(number, text=None, behaviour=None, more=()):
    messages = (("user", text or f"question {number}"), *more)
    return Prompt(number, text or "", messages, token_ids=(), responses=(), behaviour=behaviour)


def ids(prompts):
    return sorted(prompt.prompt_id for prompt in prompts)


PROMPTS = st.lists(
    st.builds(
        make_prompt,
        st.integers(0, 10_000),
        st.text(min_size=1, max_size=8),
        st.sampled_from([None, "rude", "biased"]),
    ),
    unique_by=(lambda prompt: prompt.prompt_id, lambda prompt: prompt.messages),
    max_size=40,
)


@settings(deadline=None)
@given(prompts=PROMPTS, frac=st.floats(0, 1), seed=st.integers(0, 5))
def test_each_prompt_is_in_exactly_one_split_and_openings_never_straddle(prompts, frac, seed):
    train, heldout = split_by_prompt(prompts, heldout_frac=frac, seed=seed)
    assert ids((*train, *heldout)) == ids(prompts)
    assert not {opening(p.messages) for p in train} & {opening(p.messages) for p in heldout}
    num_openings = len({opening(p.messages) for p in prompts})
    assert len({opening(p.messages) for p in heldout}) == round(frac * num_openings)


@settings(deadline=None)
@given(prompts=PROMPTS, seed=st.integers(0, 5), randomness=st.randoms())
def test_the_order_of_rows_does_not_change_the_split_or_its_order(prompts, seed, randomness):
    prompts = [replace(prompt, behaviour=None) for prompt in prompts]
    shuffled = randomness.sample(prompts, len(prompts))
    assert split_by_prompt(prompts, heldout_frac=0.3, seed=seed) == split_by_prompt(
        shuffled, heldout_frac=0.3, seed=seed
    )


def test_another_seed_holds_out_other_prompts_in_another_order():
    prompts = [make_prompt(i) for i in range(100)]
    first, second = (split_by_prompt(prompts, heldout_frac=0.2, seed=seed) for seed in (0, 1))
    assert len(first[1]) == len(second[1]) == 20
    assert ids(first[1]) != ids(second[1])
    assert [p.prompt_id for p in in_seeded_order(prompts, seed=0)] != list(range(100))


def test_each_behaviour_gives_its_share():
    prompts = [make_prompt(i, behaviour="rude" if i < 60 else "biased") for i in range(100)]
    _, heldout = split_by_prompt(prompts, heldout_frac=0.2, seed=3)
    assert sum(p.behaviour == "rude" for p in heldout) == 12
    assert sum(p.behaviour == "biased" for p in heldout) == 8


def test_many_behaviours_of_one_prompt_still_give_the_whole_share():
    prompts = [make_prompt(i, behaviour=f"b{i}") for i in range(20)]
    assert len(split_by_prompt(prompts, heldout_frac=0.25, seed=0)[1]) == 5


def test_a_conversation_and_its_continuation_stay_together():
    more = (("assistant", "a"), ("user", "b"))
    prompts = [make_prompt(i, f"Question {i}?") for i in range(10)]
    prompts += [make_prompt(10 + i, f"question  {i}", more=more) for i in range(10)]
    train, heldout = split_by_prompt(prompts, heldout_frac=0.3, seed=0)
    assert len(heldout) == 6
    assert {p.prompt_id % 10 for p in heldout}.isdisjoint(p.prompt_id % 10 for p in train)


def test_openings_ignore_case_punctuation_and_white_space_but_nothing_else():
    assert opening((("system", "x"), ("user", " Why,  NOT?"))) == opening((("user", "why not"),))
    assert opening((("user", "why not me"),)) != opening((("user", "why not"),))
    assert opening((("user", "?!"),)) != opening((("user", "!?"),))


def test_a_share_is_split_off_with_all_that_opens_alike_and_in_the_order_of_the_prompts():
    more = (("assistant", "a"), ("user", "b"))
    prompts = [make_prompt(n, f"question {n % 40}", "rude" if n % 40 < 20 else "biased") for n in range(80)]
    prompts += [make_prompt(80 + n, f"Question  {n}?", "rude", more) for n in range(20)]
    share, rest = split_off(prompts, frac=0.25, seed=3)
    assert {opening(p.messages) for p in share}.isdisjoint(opening(p.messages) for p in rest)
    assert ids((*share, *rest)) == list(range(100))
    assert [p.prompt_id for p in share] == ids(share)
    assert len({opening(p.messages) for p in share if p.behaviour == "biased"}) == 5
    assert split_off(prompts[::-1], frac=0.25, seed=3)[0] == share[::-1]


def test_prompts_apart_from_others_ask_nothing_that_those_ask():
    prompts = [make_prompt(n) for n in range(4)]
    others = [make_prompt(9, "QUESTION 2!", more=(("assistant", "a"), ("user", "b")))]
    assert [p.prompt_id for p in apart_from(prompts, others)] == [0, 1, 3]

"""Which answers a diagnosis reads, and what it refuses to compare."""

import pytest

from negalign_ray.errors import DataError
from negalign_ray.evaluation.clouds import draw_clouds
from negalign_ray.records import Prompt, Response, Role


def prompt(number: int, behaviour: str | None, *, good: int = 0, bad: int = 0) -> Prompt:
    responses = [Response(Role.POSITIVE, (1,), f"good {i}") for i in range(good)]
    responses += [Response(Role.NEGATIVE, (2,), f"bad {i}") for i in range(bad)]
    return Prompt(number, "q", (("user", "q"),), (5,), tuple(responses), behaviour)


def draw(prompts, *, max_answers=9):
    return draw_clouds(prompts, max_answers=max_answers, path="mine.jsonl", behaviour_column="harm")


def test_good_and_bad_answers_may_come_from_different_prompts():
    clouds = draw(
        [prompt(1, "rude", good=2), prompt(2, "rude", bad=1), prompt(3, "rude", bad=1), prompt(4, None, bad=1)]
    )
    assert [group.prompt.prompt_id for group in clouds.groups] == [1, 2, 3]
    assert sum(len(group.responses) for group in clouds.groups) == 4
    assert clouds.left_out == {}


def test_at_most_so_many_answers_of_each_kind_and_behaviour_are_read():
    clouds = draw([prompt(i, "rude", good=1, bad=2) for i in range(5)], max_answers=3)
    roles = [response.role for group in clouds.groups for response in group.responses]
    assert (roles.count(Role.POSITIVE), roles.count(Role.NEGATIVE)) == (3, 3)
    assert [len(group.responses) for group in clouds.groups] == [3, 2, 1]


def test_a_behaviour_without_two_answers_of_each_kind_is_left_out_and_said_so():
    clouds = draw([prompt(1, "rude", good=2, bad=2), prompt(2, "careless", good=1, bad=5)])
    assert clouds.left_out == {"careless": "1 good and 5 bad answers"}
    assert {group.prompt.behaviour for group in clouds.groups} == {"rude"}


def test_data_without_behaviours_is_refused_naming_the_column():
    with pytest.raises(
        DataError, match=r"mine\.jsonl.*names no behaviours.*add a column 'harm'.*data\.behaviour_column"
    ):
        draw([prompt(1, None, good=2, bad=2)])


def test_data_without_good_answers_is_refused_naming_the_column():
    with pytest.raises(DataError, match=r"has no good answers.*column `chosen`"):
        draw([prompt(1, "rude", bad=3)])


def test_data_without_bad_answers_is_refused_naming_the_column():
    with pytest.raises(DataError, match=r"has no bad answers.*column `rejected`"):
        draw([prompt(1, "rude", good=3)])


def test_data_with_too_few_answers_of_every_behaviour_is_refused():
    with pytest.raises(DataError, match=r"no behaviour has 2 good and 2 bad.*rude: 1 good and 1 bad"):
        draw([prompt(1, "rude", good=1, bad=1)])

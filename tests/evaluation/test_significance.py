"""Exact tests against numbers worked out by hand."""

import numpy as np
import pytest

from negalign_ray.evaluation.bootstrap import Bootstrap, pooled
from negalign_ray.evaluation.figures import Figure
from negalign_ray.evaluation.intervals import Sums
from negalign_ray.evaluation.significance import McNemar, mcnemar, mcnemar_of, sign_test


def rate(hits, *, ids=None, is_rate=True, key="refusals"):
    ids = tuple(range(len(hits))) if ids is None else ids
    sums = Sums.of([float(hit) for hit in hits])
    return pooled([[Figure(key, key, "lower", sums, (None,) * len(hits), is_rate=is_rate, prompt_ids=ids)]])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(0, 4, 2 / 16), (4, 0, 2 / 16), (1, 8, 2 * (1 + 9) / 512), (3, 3, 1.0), (0, 0, 1.0)],
)
def test_the_sign_test_doubles_the_binomial_tail(first, second, expected):
    assert sign_test(first, second) == pytest.approx(expected)


def test_only_prompts_on_which_the_models_differ_count():
    before = rate([1, 1, 1, 1, 1, 0, 0, 1])["refusals"]
    after = rate([0, 0, 0, 0, 0, 0, 1, 1])["refusals"]  # five fall, one rises, two stay
    assert mcnemar(before, after) == McNemar(only_before=5, only_after=1, p_value=pytest.approx(2 * (1 + 6) / 64))


def test_pairs_are_made_by_prompt_not_by_position():
    before, after = rate([1, 0, 0], ids=(7, 8, 9))["refusals"], rate([0, 1, 0], ids=(9, 7, 5))["refusals"]
    assert mcnemar(before, after) == McNemar(0, 0, 1.0)  # prompt 7: yes and yes, prompt 9: no and no


def test_means_and_prompts_with_several_answers_have_no_such_test():
    assert mcnemar(rate([1, 0], is_rate=False)["refusals"], rate([1, 1], is_rate=False)["refusals"]) is None
    twice = rate([1, 0, 1], ids=(1, 1, 2))["refusals"]
    assert mcnemar(twice, twice) is None
    both = {**rate([1, 0]), **rate([1, 0], is_rate=False, key="score")}
    assert set(mcnemar_of(both, both)) == {"refusals"}


def test_four_changed_prompts_of_24_convince_the_bootstrap_and_not_the_exact_test():
    before, after = rate([1] * 4 + [0] * 20)["refusals"], rate([0] * 24)["refusals"]
    interval = Bootstrap(resamples=20_000, seed=0).difference(before, after)
    assert interval.high < 0  # a resample without any of the four has the chance (20 / 24) ** 24 = 0.013
    assert mcnemar(before, after).p_value == pytest.approx(0.125)


def test_the_sign_test_is_wrong_at_most_one_time_in_twenty():
    rng = np.random.default_rng(0)
    wins = rng.binomial(40, 0.5, size=4000)
    p_values = {int(count): sign_test(int(count), 40 - int(count)) for count in set(wins.tolist())}
    assert 0.02 < np.mean([p_values[int(count)] < 0.05 for count in wins]) <= 0.05

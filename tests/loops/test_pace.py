"""Rates and idle shares of a run: figures worked out by hand."""

import pytest

from negalign_ray.loops.pace import Pace, idle_fracs, pace_of


def test_rates_are_means_over_the_steps_between_the_first_and_the_last_row():
    rows = [
        {"step": 1, "time_s": 10.0, "learner/tokens": 999, "sampler/tokens_per_s": 999.0, "sampler/busy_s": 9.0},
        {"step": 2, "time_s": 14.0, "learner/tokens": 300, "sampler/tokens_per_s": 50.0, "sampler/busy_s": 2.0},
        {"step": 3, "time_s": 20.0, "learner/tokens": 500, "sampler/tokens_per_s": 50.0, "sampler/busy_s": 4.0},
    ]
    # 10 s hold 2 steps of 8 groups, 50 * 2 + 50 * 4 sampled tokens, 800 trained ones; 7 steps at 5 s are left.
    assert pace_of(rows, groups_per_step=8, steps_left=7) == Pace(1.6, 30.0, 80.0, 35.0)
    assert pace_of(rows[:1], groups_per_step=8, steps_left=7) == Pace()


def test_only_the_newest_steps_count():
    rows = [{"step": n, "time_s": 100.0 * n, "learner/tokens": 1} for n in range(20)]
    rows += [{"step": 20 + n, "time_s": 2000.0 + n, "learner/tokens": 1} for n in range(11)]
    pace = pace_of(rows, groups_per_step=3, steps_left=2)
    assert (pace.groups_per_s, pace.eta_s, pace.sampled_tokens_per_s) == (3.0, 2.0, None)


def test_idle_is_the_time_of_the_steps_in_which_a_role_s_actors_did_not_work():
    rows = [
        {"step": 1, "time_s": 10.0, "sampler/busy_s": 999.0},
        {"step": 2, "time_s": 14.0, "sampler/busy_s": 6.0, "reference/busy_s": 1.0, "learner/pull_wait_s": 3.0},
        {"step": 3, "time_s": 20.0, "sampler/busy_s": 10.0, "reference/busy_s": None, "learner/pull_wait_s": 5.0},
    ]
    # 10 s: two samplers worked 16 of 20 actor seconds, the reference 1 of 10; the learner waited 8.
    shares = idle_fracs(rows, num_actors={"sampler": 2, "reference": 1, "learner": 4})
    assert shares == pytest.approx({"sampler": 0.2, "reference": 0.9, "learner": 0.8})
    assert idle_fracs(rows, num_actors={"reference": 4}) == pytest.approx({"reference": 0.9}), "the busiest one's"
    assert idle_fracs(rows[:1], num_actors={"sampler": 2}) == {}


def test_a_share_stays_within_0_and_1_where_clocks_disagree():
    rows = [{"step": 1, "time_s": 0.0}, {"step": 2, "time_s": 1.0, "sampler/busy_s": 1.5, "learner/pull_wait_s": 1.2}]
    assert idle_fracs(rows, num_actors={"sampler": 1, "learner": 1}) == {"sampler": 0.0, "learner": 1.0}

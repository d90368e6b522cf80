from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negalign_ray.loops.schedule import SamplingSchedule


def online(*, staleness: int = 0, start: int = 0) -> SamplingSchedule:
    return SamplingSchedule(interval=False, online_from_step=start, refresh_every=1, staleness=staleness)


def interval(*, every: int, start: int) -> SamplingSchedule:
    return SamplingSchedule(interval=True, online_from_step=start, refresh_every=every, staleness=0)


def test_staleness_zero_demands_the_version_that_trains_the_step():
    assert [online().oldest_allowed(step) for step in range(4)] == [0, 1, 2, 3]


def test_staleness_two_accepts_samples_two_steps_old_but_never_negative_versions():
    assert [online(staleness=2).oldest_allowed(step) for step in range(5)] == [0, 0, 0, 1, 2]


def test_before_t0_the_initial_model_serves_and_nothing_is_published():
    schedule = online(start=3)
    assert [schedule.oldest_allowed(step) for step in range(6)] == [0, 0, 0, 3, 4, 5]
    assert [version for version in range(6) if schedule.publishes(version)] == [3, 4, 5]


def test_versions_for_an_evaluation_alone_are_published_besides():
    schedule = replace(online(start=5), also_every=2)
    assert [version for version in range(7) if schedule.publishes(version)] == [2, 4, 5, 6]
    assert [schedule.oldest_allowed(step) for step in range(7)] == [0, 0, 0, 0, 0, 5, 6]


def test_asynchronous_sampling_never_uses_a_half_trained_model_from_before_t0():
    assert [online(staleness=2, start=3).oldest_allowed(step) for step in range(2, 8)] == [0, 3, 3, 3, 4, 5]


def test_interval_refreshes_at_t0_and_every_r_steps_after():
    schedule = interval(every=4, start=2)
    assert [schedule.oldest_allowed(step) for step in range(12)] == [0, 0, 2, 2, 2, 2, 6, 6, 6, 6, 10, 10]
    assert [version for version in range(12) if schedule.publishes(version)] == [2, 6, 10]


@given(
    staleness=st.integers(0, 5), start=st.integers(0, 10), every=st.integers(1, 7), step=st.integers(0, 60),
    kind=st.sampled_from(["online", "interval"]),
)  # fmt: skip
def test_every_step_can_be_served_by_a_version_that_was_published(staleness, start, every, step, kind):
    schedule = online(staleness=staleness, start=start) if kind == "online" else interval(every=every, start=start)
    oldest = schedule.oldest_allowed(step)
    assert 0 <= oldest <= step
    available = [0] + [version for version in range(1, step + 1) if schedule.publishes(version)]
    assert max(available) >= oldest
    assert oldest <= schedule.oldest_allowed(step + 1), "requirements only grow"


@pytest.mark.parametrize("version", [0])
def test_the_initial_model_is_never_published(version):
    assert not online().publishes(version)

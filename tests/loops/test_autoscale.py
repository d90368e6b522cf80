"""When samplers become more or fewer: by hand-computed steps, and never back and forth."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negalign_ray.config import AutoscaleConfig
from negalign_ray.loops.autoscale import Autoscaler, Decision, Load

STARVING = Load(wait_frac=0.5, busy_frac=1.0, caught_up=False)
IDLE = Load(wait_frac=0.0, busy_frac=0.25, caught_up=True)


def make(**settings) -> Autoscaler:
    return Autoscaler(AutoscaleConfig(**{"max": 4, "patience": 3, "cooldown": 0, **settings}))


def watch(scaler: Autoscaler, loads: Sequence[Load], *, num: int) -> list[Decision | None]:
    return [scaler.observe(load, num=num) for load in loads]


def test_learners_that_wait_get_one_more_sampler_after_as_many_steps_as_patience_says():
    nothing, still, decision = watch(make(), [STARVING] * 3, num=2)
    assert (nothing, still) == (None, None)
    assert decision == Decision(3, "learners waited for batches for 50% of their time over the last 3 steps")


def test_the_mean_of_the_steps_counts_so_that_one_slow_step_decides_nothing():
    calm = Load(wait_frac=0.04, busy_frac=1.0, caught_up=False)
    assert watch(make(), [calm, STARVING, calm], num=2)[-1] is None, "(0.04 + 0.5 + 0.04) / 3 = 0.193 < 0.2"
    assert watch(make(), [calm, STARVING, STARVING], num=2)[-1] is not None, "1.04 / 3 = 0.347"


def test_samplers_that_have_caught_up_and_could_spare_one_become_fewer():
    decision = watch(make(), [IDLE] * 3, num=3)[-1]  # 0.25 * 3 / 2 = 0.375 of the time of those who stay
    assert decision is not None
    assert decision.num == 2
    assert "busy for 25% of their time" in decision.reason


@pytest.mark.parametrize(
    ("load", "why"),
    [
        (Load(0.0, 0.65, caught_up=True), "0.65 * 3 / 2 = 0.975: the others would be idle for 2.5 %, not 10 %"),
        (Load(0.0, 0.25, caught_up=False), "orders are under way"),
        (Load(0.05, 0.25, caught_up=True), "learners wait, if only for a quarter of what counts as starving"),
    ],
)
def test_a_sampler_that_is_needed_stays(load, why):
    assert watch(make(), [load] * 9, num=3) == [None] * 9, why


def test_nothing_is_decided_in_the_first_steps_and_after_a_change():
    scaler = make(cooldown=2, patience=1)
    assert [bool(decision) for decision in watch(scaler, [STARVING] * 3, num=1)] == [False, False, True]
    assert watch(scaler, [STARVING] * 2, num=1) == [None] * 2, "the new one is still starting"
    assert watch(scaler, [STARVING] * 2, num=2) == [None] * 2, "it joined: what was measured before counts no more"
    assert watch(scaler, [STARVING], num=2)[0] is not None


def test_a_sampler_that_was_lost_starts_the_cooldown_too():
    scaler = make(cooldown=2, patience=1)
    watch(scaler, [Load(0.1, 1.0, caught_up=False)] * 5, num=3)
    assert [bool(decision) for decision in watch(scaler, [STARVING] * 3, num=2)] == [False, False, True]


@pytest.mark.parametrize(("num", "wanted"), [(1, 2), (9, 4)])
def test_a_number_outside_the_bounds_is_brought_inside_at_once(num, wanted):
    decision = make(min=2, cooldown=5).observe(IDLE, num=num)
    assert decision == Decision(wanted, "samplers.autoscale keeps them from 2 to 4")


FRACTION = st.floats(0, 1, allow_nan=False)
CONFIGS = st.builds(
    lambda low, more, **rest: AutoscaleConfig(min=low, max=low + more, **rest),
    low=st.integers(1, 4),
    more=st.integers(0, 8),
    starving_frac=st.floats(0.01, 0.9),
    spare_frac=st.floats(0, 0.9),
    patience=st.integers(1, 4),
    cooldown=st.integers(0, 4),
)


def follow(config: AutoscaleConfig, load_at: Callable[[int, int], Load], *, start: int, steps: int = 120) -> list[int]:
    """The numbers of samplers over a run in which every decision takes effect at the next step."""
    scaler, nums = Autoscaler(config), [start]
    for step in range(steps):
        decision = scaler.observe(load_at(step, nums[-1]), num=nums[-1])
        nums.append(nums[-1] if decision is None else decision.num)
    return nums


@given(
    config=CONFIGS,
    loads=st.lists(st.builds(Load, FRACTION, FRACTION, st.booleans()), min_size=1, max_size=30),
    data=st.data(),
)
def test_whatever_is_measured_the_number_stays_within_its_bounds_and_moves_by_one(config, loads, data):
    start = data.draw(st.integers(config.min, config.max))
    nums = follow(config, lambda step, num: loads[step % len(loads)], start=start)
    assert all(config.min <= num <= config.max for num in nums)
    assert all(abs(after - before) <= 1 for before, after in pairwise(nums))


@given(config=CONFIGS, load=st.builds(Load, FRACTION, FRACTION, st.booleans()), data=st.data())
def test_on_a_constant_measurement_the_number_only_rises_or_only_falls(config, load, data):
    nums = follow(config, lambda step, num: load, start=data.draw(st.integers(config.min, config.max)))
    assert nums == sorted(nums) or nums == sorted(nums, reverse=True)


@given(config=CONFIGS, ratio=st.floats(0.05, 12), overlaps=st.booleans(), data=st.data())
def test_in_a_pipeline_that_answers_to_the_number_it_settles_and_does_not_turn_back(config, ratio, overlaps, data):
    """`ratio`: seconds one sampler needs for a step, by the seconds that the learners need."""

    def load_at(step: int, num: int) -> Load:
        sample_s, train_s = ratio / num, 1.0
        step_s = max(sample_s, train_s) if overlaps else sample_s + train_s
        return Load((step_s - train_s) / step_s, sample_s / step_s, caught_up=not overlaps or sample_s < train_s)

    nums = follow(config, load_at, start=data.draw(st.integers(config.min, config.max)))
    assert nums == sorted(nums) or nums == sorted(nums, reverse=True)
    assert len(set(nums[-20:])) == 1, "it has settled"

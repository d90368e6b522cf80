"""The row of a step: what the rollout counted stands in it under the keys of the catalogue."""

import re
from pathlib import Path

from negalign_ray.loops import crew, production
from negalign_ray.loops.merge import COUNTS, merge_reports
from negalign_ray.loops.roles import Batch, StepReport
from negalign_ray.loops.rollout import Rollout
from negalign_ray.metrics import metric_for
from tests.loops.fakes import FakeFleet
from tests.loops.test_rollout import GROUPS, make_rollout, run

LEARNED = {"learner/compute_s": 2.0, "learner/pull_wait_s": 1.0}


def row_of(rollout: Rollout, batch: Batch) -> dict[str, float]:
    report = StepReport(batch.step, 0, sums={"learner/tokens": 100}, counts={}, values=LEARNED)
    row = merge_reports([report], batch, rollout=rollout)
    for key in row:
        metric_for(key)
    return row


def last_row(faults: set[tuple[str, int]], *, num_steps: int = 1, **settings) -> dict[str, float]:
    rollout = make_rollout(FakeFleet(fault=lambda *call: call in faults), num_steps=num_steps, **settings)
    return row_of(rollout, run(rollout, num_steps)[-1])


def test_everything_the_rollout_counts_is_reported():
    text = "".join(Path(module.__file__).read_text() for module in (crew, production))
    counted = re.findall(r'counts\["(\w+)"\] \+=', text)
    assert set(counted) == set(COUNTS)


def test_a_run_without_faults_reports_zeros():
    assert {metric: last_row(set())[metric] for metric in COUNTS.values()} == dict.fromkeys(COUNTS.values(), 0)


def test_answers_that_are_empty_or_repeated_are_counted_one_by_one():
    row = last_row({("empty", 1)})  # one of three groups comes without its two answers
    assert (row["conductor/samples_dropped"], row["conductor/dropped_empty"]) == (2, 1)
    assert row["conductor/samples_gated"] == 0


def test_answers_that_the_gate_stops_are_counted_one_by_one():
    row = last_row({("gate", 0), ("gate", 2)})
    assert (row["conductor/samples_gated"], row["conductor/dropped_gate"]) == (4, 2)
    assert row["conductor/samples_dropped"] == 0


def test_a_sampler_that_fails_and_one_that_does_not_confirm_its_weights_are_both_counted_as_replaced():
    row = last_row({("sample", 0), ("load", 0)}, num_steps=2)
    assert (row["conductor/samplers_replaced"], row["conductor/reissued"]) == (2, GROUPS)


def test_a_head_that_fails_is_counted_by_the_groups_that_it_cost():
    row = last_row({("score", 0)})
    assert (row["scorer/failed"], row["conductor/failed"]) == (GROUPS, GROUPS)


def test_the_share_of_remembered_prices_is_of_prices_asked_and_adds_up_over_waves():
    # 3 groups of 1 human and 2 own answers; the fake remembers 2 a call
    assert last_row(set())["reference/cache_hits_frac"] == 2 / 9
    # the second group is ordered again in a wave of its own: 6 + 3 prices in two calls
    assert last_row({("empty", 1)})["reference/cache_hits_frac"] == 4 / 9


def test_a_method_without_references_reports_no_share_of_remembered_prices():
    assert "reference/cache_hits_frac" not in last_row(set(), wants_references=False)

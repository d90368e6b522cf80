"""What the conductor is started with."""

import pytest

from negalign_ray.actors.presence import num_calls_at_once


@pytest.mark.parametrize("num_learners", [1, 64, 255, 256, 1000])
def test_ranks_that_all_wait_in_the_conductor_leave_room_for_those_who_ask_report_and_stop(num_learners):
    waiting = 2 * num_learners  # a pull, and a report or a last word
    assert num_calls_at_once(num_learners) - waiting >= 64

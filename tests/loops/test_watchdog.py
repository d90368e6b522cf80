"""The watchdog by a clock of its own: what counts as a move, when it bites, and whom it names."""

import pytest

from negalign_ray.loops.watchdog import Activity, ActivityBook, Watchdog, suspects


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book(clock) -> ActivityBook:
    return ActivityBook(now_s=clock)


def shown(book: ActivityBook) -> list[str]:
    return [str(activity) for activity in book.activities()]


def test_it_bites_after_the_set_time_without_a_move_and_not_before(clock):
    watchdog = Watchdog(stall_s=10, now_s=clock)
    assert watchdog.look(0) is None
    clock.now_s += 10
    assert watchdog.look(0) is None
    clock.now_s += 1
    assert watchdog.look(0) == 11


def test_any_move_starts_the_time_anew(clock):
    watchdog = Watchdog(stall_s=10, now_s=clock)
    for moves in range(5):
        clock.now_s += 9
        assert watchdog.look(moves) is None
    clock.now_s += 9
    assert watchdog.look(4) is None
    clock.now_s += 9
    assert watchdog.look(4) == 18


def test_a_role_is_busy_while_a_call_is_under_way_and_idle_afterwards(book, clock):
    with book.call("sampler", 1, "sample", version=12):
        clock.now_s += 431
        assert shown(book) == ["sampler[1] v12: sample for 431 s"]
        assert book.moves == 0, "a call that begins moves nothing: what it is about may never come"
    clock.now_s += 2
    assert shown(book) == ["sampler[1] v12: idle for 2 s"]
    assert book.moves == 1


def test_a_call_that_fails_is_over_too(book):
    with pytest.raises(ValueError), book.call("scorer", 0, "score"):
        raise ValueError
    assert shown(book) == ["scorer[0]: idle for 0 s"]


def test_of_several_calls_to_one_role_the_longest_counts_until_it_ends(book, clock):
    with book.call("scorer", 0, "score"):
        clock.now_s += 5
        with book.call("scorer", 0, "score"):
            clock.now_s += 1
            assert shown(book) == ["scorer[0]: score for 6 s"]
        assert book.moves == 1
        assert shown(book) == ["scorer[0]: score for 6 s"], "the other one is still under way"


def test_a_learner_tells_what_it_does_and_each_word_is_a_move(book, clock):
    book.says("learner", 0, "waits for the batch of step 3", works=False)
    clock.now_s += 4
    book.says("learner", 0, "trains on step 3", works=True)
    assert book.moves == 2
    assert book.activities() == (Activity("learner", 0, "trains on step 3", 0.0, works=True),)


def busy_s(book: ActivityBook) -> dict[str, float]:
    return {activity.role: activity.busy_s for activity in book.activities()}


def test_the_seconds_of_work_add_up_and_overlapping_calls_count_once(book, clock):
    with book.call("scorer", 0, "score"):
        clock.now_s += 5
        with book.call("scorer", 0, "score"):
            clock.now_s += 1
        clock.now_s += 2
        assert busy_s(book) == {"scorer": 8.0}, "the call under way counts, too"
    clock.now_s += 100
    with book.call("scorer", 0, "score"):
        clock.now_s += 3
    assert busy_s(book) == {"scorer": 11.0}


def test_a_role_that_has_left_is_named_no_more_even_when_its_call_ends_afterwards(book):
    with book.call("sampler", 0, "sample"):
        pass
    with book.call("sampler", 1, "start"):
        book.leave("sampler", 1)
    assert shown(book) == ["sampler[0]: idle for 0 s"]
    with book.call("sampler", 1, "start"):
        assert shown(book)[1] == "sampler[1]: start for 0 s", "another one of its rank is known again"


def test_a_learner_that_waits_does_not_work(book, clock):
    for _ in range(2):
        book.says("learner", 0, "waits for a batch", works=False)
        clock.now_s += 10
        book.says("learner", 0, "trains", works=True)
        clock.now_s += 3
        book.says("learner", 0, "has trained", works=True)
        clock.now_s += 1
    assert busy_s(book) == {"learner": 8.0}


def test_suspects_are_those_who_work_the_longest_first_never_those_who_wait():
    waits = Activity("learner", 0, "waits for the batch of step 3", 500.0, works=False)
    works = Activity("sampler", 1, "sample call", 430.0, works=True)
    since = Activity("learner", 1, "trains on step 2", 2.0, works=True)
    idle = Activity("scorer", 0, "idle", 900.0, works=False)
    assert suspects([waits, since, works, idle]) == [works, since]
    assert suspects([waits, idle]) == []

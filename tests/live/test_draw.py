"""Curves and bars, character by character."""

import pytest

from negalign_ray.live.draw import bar, chart, clock, shortened, spark, thinned


def test_the_lowest_value_is_the_lowest_block_and_the_highest_the_highest():
    assert spark((0, 1, 2, 7), 4) == "▁▂▃█"
    assert spark((-5.0, 5.0), 2) == "▁█"


def test_more_values_than_columns_are_means_and_fewer_are_spread():
    assert spark((0, 0, 7, 7, 3, 4), 3) == "▁█▅"  # means 0, 7, 3.5; 3.5 / 7 * 7 rounds to 4
    assert spark((0, 7), 4) == "▁▁██"


@pytest.mark.parametrize("values", [(0.0,), (3.0, 3.0), (-1.0, -1.0, -1.0)])
def test_equal_values_are_a_flat_line(values):
    assert spark(values, 6) == "▁▁▁▁▁▁"


def test_every_value_has_a_part_in_exactly_one_mean():
    assert thinned((1, 2, 3, 4, 5), 2) == [1.5, 4.0]  # (1, 2) and (3, 4, 5)
    assert thinned((1, 2), 5) == [1, 2]


def test_a_falling_line_goes_from_the_upper_left_dot_to_the_lower_right_one():
    # 4 columns of dots, 4 rows: one dot each on the diagonal. Rows 0, 1 of the first character, 2, 3 of the second.
    assert chart((3.0, 2.0, 1.0, 0.0), width=2, height=1) == [chr(0x2800 + 0x01 + 0x10) + chr(0x2800 + 0x04 + 0x80)]


def test_a_jump_has_no_gap():
    # The second column reaches from the bottom to the dot beside the first one, which is on top.
    assert chart((1.0, 0.0), width=1, height=1) == [chr(0x2800 + 0x01 + 0x10 + 0x20 + 0x80)]


def test_a_chart_of_one_value_is_a_line_at_the_bottom():
    assert chart((0.7,), width=3, height=2) == ["⠀" * 3, "⣀" * 3]


def test_a_chart_keeps_its_size_with_any_number_of_values():
    for num in (1, 2, 7, 100, 1001):
        lines = chart([index % 5 for index in range(num)], width=20, height=6)
        assert [len(line) for line in lines] == [20] * 6


def test_a_bar_shows_anything_above_nothing():
    assert bar(0.5, 4) == ("━━", "──")
    assert bar(0.001, 4) == ("━", "───")
    assert bar(0.0, 4) == ("", "────")
    assert bar(1.7, 4) == ("━━━━", "")


def test_times_and_numbers_are_short():
    assert [clock(s) for s in (0, 59.6, 75, 3700, 200_000)] == ["0:00", "1:00", "1:15", "1:01:40", "2d 7:33:20"]
    assert [shortened(n) for n in (0, 38.4, 9999, 12_345, 1_234_567)] == ["0", "38", "9999", "12.3k", "1.23e+03k"]

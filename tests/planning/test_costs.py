"""From figures of a bench to seconds of a stage; all lines are worked out by hand."""

import json

import pytest

from negalign_ray.errors import ConfigError
from negalign_ray.planning.bench_file import Point, measured_from, read_bench
from negalign_ray.planning.costs import Costs, Line, fit
from tests.planning.figures import bench_figures


def make_costs(**lines) -> Costs:
    zero = Line(0.0, 0.0)
    made = dict.fromkeys(("decode_round", "score_groups", "price_tokens", "learn_tokens"), zero) | lines
    return Costs(**made, weights_s=0.0, gather_s=0.0, answer_frac=1.0)


def write(path, figures):
    path.write_text(json.dumps(figures))
    return path


def test_every_section_of_a_bench_adds_its_points():
    measured = measured_from(bench_figures())
    # sampler: 144 s / 48 rounds with 32 sequences; step: 96 / 48 with 16; async: 96 / 24 with 16 and one thread
    assert measured.decode_rounds == (Point(2, 32, 3.0), Point(2, 16, 2.0), Point(1, 16, 4.0))
    assert measured.learn_tokens == (Point(1, 1000, 17.0), Point(2, 1000, 10.0), Point(1, 500, 9.0))
    assert measured.price_tokens == (Point(2, 1000, 2.0), Point(1, 500, 3.0))
    assert measured.weights_s == (0.5, 0.5, 0.5), "of the sampler section what is left after the learner's copy"
    assert measured.gather_s == (0.25, 0.25, 0.25)
    assert measured.answer_frac == (0.5, 0.5)
    assert measured.num_params == 1_000_000


def test_files_of_one_model_add_up_and_those_of_two_are_refused(tmp_path):
    first = write(tmp_path / "a.json", bench_figures("sampler"))
    second = write(tmp_path / "b.json", bench_figures("step"))
    both = read_bench([first, second])
    assert (len(both.decode_rounds), both.num_params) == (2, 1_000_000)
    with pytest.raises(ConfigError, match="two models, toy and other"):
        read_bench([first, write(tmp_path / "c.json", bench_figures("step", model="other"))])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ('{"model": "toy"}', "is not the figures of a bench"),
        (json.dumps(bench_figures("sampler")), "it has no section step or learner"),
    ],
)
def test_a_file_that_is_no_bench_is_refused_with_how_to_make_one(tmp_path, content, message):
    (tmp_path / "bench.json").write_text(content)
    with pytest.raises(ConfigError, match=rf"{message}.*negalign-ray bench --json FILE"):
        read_bench([tmp_path / "bench.json"])


def fitted(*points: Point, threads: int) -> tuple[Line, list[str]]:
    notes: list[str] = []
    return fit(points, threads=threads, what="samplers", notes=notes), notes


def test_two_amounts_give_the_fixed_part_and_the_part_per_unit():
    line, notes = fitted(Point(2, 16, 2.0), Point(2, 32, 3.0), threads=2)
    assert (line.fixed_s, line.per_unit_s, notes) == (pytest.approx(1.0), pytest.approx(1 / 16), [])


def test_one_amount_with_the_role_s_threads_sets_the_level_of_a_line_measured_with_others():
    line, notes = fitted(Point(2, 16, 2.0), Point(2, 32, 3.0), Point(1, 16, 4.0), threads=1)
    assert line.seconds(16) == pytest.approx(4.0)
    assert line.seconds(32) == pytest.approx(6.0), "twice as long everywhere"
    assert notes == []


def test_threads_that_nobody_measured_are_taken_to_help_in_proportion_and_a_note_says_so():
    line, notes = fitted(Point(2, 16, 2.0), threads=4)
    assert line.seconds(16) == pytest.approx(1.0)
    assert notes == ["samplers: measured with 2 thread(s), 4 taken to be 2 times as fast"]


def test_a_fixed_part_below_zero_is_no_fixed_part():
    line, _ = fitted(Point(1, 10, 1.0), Point(1, 20, 3.0), threads=1)
    # Proportional: 2 s for 15; then the mean of 1 / (20/15) and 3 / (40/15), .9375, sets the level.
    assert (line.fixed_s, line.per_unit_s) == (0.0, pytest.approx(0.125))


def test_more_work_in_less_time_is_noise_around_a_constant():
    line, _ = fitted(Point(1, 10, 3.0), Point(1, 20, 1.0), threads=1)
    assert (line.fixed_s, line.per_unit_s) == (pytest.approx(2.0), 0.0)


def test_what_was_not_measured_takes_no_time_and_a_note_says_so():
    line, notes = fitted(threads=2)
    assert (line.seconds(10), notes) == (0.0, ["samplers: not measured, taken as no time"])


@pytest.mark.parametrize(
    ("lengths", "at_once", "expected"),
    [
        ([4], 8, 4 * 11),
        ([4, 4], 8, 4 * 12),
        ([2, 4], 8, 2 * 12 + 2 * 11),  # the second goes on alone
        ([2, 3, 1], 2, 3 * 12),  # the third comes in when the first ends
        ([3, 3, 3], 1, 9 * 11),
        ([], 8, 0),
    ],
)
def test_a_call_of_a_sampler_decodes_round_by_round_with_as_many_sequences_as_run(lengths, at_once, expected):
    costs = make_costs(decode_round=Line(10.0, 1.0))  # a round takes 10 s and 1 s for each sequence
    assert costs.sample_s(lengths, max_num_seqs=at_once) == pytest.approx(expected)

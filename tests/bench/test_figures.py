"""From rows of metrics and repeats to the figures that are printed."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch

from negalign_ray.bench.machine import describe_machine, matmul_flops_per_s
from negalign_ray.bench.measure import interleave, median_ratio, with_settings
from negalign_ray.bench.memory import role_of
from negalign_ray.bench.overlap import sides_of
from negalign_ray.bench.run import SECTIONS, bench, headline
from negalign_ray.bench.short_run import figures_of
from negalign_ray.config import Config
from negalign_ray.errors import ConfigError

ON_THE_PAGE = {
    "sampler_vs_bare_vllm",
    "learner_frac_of_ceiling",
    "orchestration_frac",
    "weight_update_s",
    "async_over_sync",
    "speedup_vs_single_process",
}


def row(step: int, time_s: float, **seconds: float) -> dict[str, float]:
    """Weights 0.5, sampler 4 (at 10 tokens/s), scorer 0.1, reference 1.4, learner 3, gather 0.25: 9.25 s of work."""
    values = {
        "sampler/weights_s": 0.5, "sampler/busy_s": 4.0, "sampler/tokens_per_s": 10.0, "scorer/busy_s": 0.1,
        "reference/busy_s": 1.4, "learner/compute_s": 3.0, "learner/gather_s": 0.25, "learner/tokens": 60.0,
    }  # fmt: skip
    return {"step": step, "time_s": time_s} | values | {name.replace("__", "/"): s for name, s in seconds.items()}


ROWS = [row(1, 40.0), row(2, 60.0), row(3, 70.0), row(4, 79.5), row(5, 91.5)]
RUN = {"threads": {"samplers": 1}, "peak_memory_bytes": {"sampler": 5}}


def test_steps_are_timed_from_row_to_row_after_the_warm_up():
    figures = figures_of(ROWS, warmup_steps=2, staleness=0, **RUN)
    assert figures.steps_s == (10.0, 9.5, 12.0)
    assert figures.step_s == 10.0


def test_orchestration_is_what_no_stage_was_busy_in():
    figures = figures_of(ROWS, warmup_steps=2, staleness=0, **RUN)
    assert figures.orchestration_s == pytest.approx(0.75)  # median of 0.75, 0.25 and 2.75
    assert figures.orchestration_frac == pytest.approx(0.075)


def test_overlapping_stages_leave_nothing_to_blame():
    figures = figures_of(ROWS, warmup_steps=2, staleness=1, **RUN)
    assert figures.orchestration_s is None
    assert figures.orchestration_frac is None


def test_every_stage_has_seconds_and_those_that_move_tokens_a_rate():
    stages = figures_of(ROWS, warmup_steps=2, staleness=0, **RUN).stages
    assert stages["sampler"].tokens_per_s == pytest.approx(10.0)
    assert stages["learner"].tokens_per_s == pytest.approx(20.0)
    assert stages["weights"].tokens_per_s is None


def test_the_two_sides_of_an_asynchronous_step_add_up_to_all_stages():
    sampling_s, learning_s = sides_of(figures_of(ROWS, warmup_steps=2, staleness=0, **RUN))
    assert sampling_s == pytest.approx(6.0)
    assert learning_s == pytest.approx(3.25)


def test_ratios_are_taken_pair_by_pair():
    assert median_ratio([10, 30, 10], [10, 10, 20]) == 1.0


def test_repeats_alternate_which_side_goes_first():
    order: list[str] = []
    pairs = interleave(
        lambda repeat: order.append(f"a{repeat}") or repeat, lambda repeat: order.append(f"b{repeat}"), repeats=3
    )
    assert order == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert [a for a, _ in pairs] == [0, 1, 2]


def test_settings_are_merged_and_checked_again():
    config = with_settings(Config(), {"learners": {"steps": 5}}, {"learners": {"num": 2}})
    assert (config.learners.steps, config.learners.num) == (5, 2)
    with pytest.raises(ValueError):
        with_settings(Config(), {"learners": {"num": 0}})


def test_roles_are_recognised_by_the_titles_that_ray_gives_processes():
    assert role_of("ray::Sampler.sample") == "sampler"
    assert role_of("ray::RayTrainWorker") == "learner"
    assert role_of("ray::IDLE") is None
    assert role_of("python") is None


def test_a_process_without_roles_has_no_peak_memory():
    code = "from negalign_ray.bench.memory import PeakMemory as P; p = P(); p.look(); print(p.bytes_by_role)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "{}"


def test_a_matmul_rate_is_positive_and_finite():
    assert 0 < matmul_flops_per_s(torch.float32, size=32, min_s=0.0) < float("inf")


def test_the_machine_is_described_in_plain_data():
    facts = json.loads(json.dumps(asdict(describe_machine())))
    assert facts["num_cores"] >= 1
    assert facts["memory_bytes"] > 1 << 30
    assert facts["versions"]["torch"] == torch.__version__


def test_every_figure_of_the_page_has_a_key_even_when_its_section_was_left_out():
    figures = headline({})
    assert set(figures) >= ON_THE_PAGE
    assert set(figures.values()) == {None}


def test_an_unknown_section_is_refused_with_the_valid_names():
    with pytest.raises(ConfigError, match=r"--only learners: .* sampler, learner, step, async"):
        bench(Config(), sections=["learners"])
    assert list(SECTIONS) == ["sampler", "learner", "step", "async"]


def test_roles_on_a_gpu_are_refused():
    with pytest.raises(ConfigError, match=r"samplers\.gpus=1"):
        bench(with_settings(Config(), {"samplers": {"gpus": 1.0}}))

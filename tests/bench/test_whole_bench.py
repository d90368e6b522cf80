"""The whole benchmark on the toy model: every section runs, and the JSON holds what is promised."""

import json
from pathlib import Path

import pytest

from negalign_ray.bench.measure import with_settings
from negalign_ray.bench.run import SECTIONS, bench
from negalign_ray.config import Config
from tests.bench.settings import TOY_SETTINGS, TOY_SIZES
from tests.bench.test_figures import ON_THE_PAGE


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_section_gives_its_figures(toy_model: Path):
    config = with_settings(Config(), TOY_SETTINGS, {"model": {"path": str(toy_model)}})
    figures = json.loads(json.dumps(bench(config, sizes=TOY_SIZES)))

    assert {key: figures[key] for key in ON_THE_PAGE if figures[key] <= 0}.keys() <= {"orchestration_frac"}
    assert 0 <= figures["orchestration_frac"] < 1, "0 where learners waited for no longer than the roles worked"
    assert figures["compute_dtype"] in ("float32", "bfloat16")
    assert set(figures["sections"]) == set(SECTIONS)
    sampler, step = figures["sections"]["sampler"], figures["sections"]["step"]
    bytes_each = {"float32": 4, "bfloat16": 2}[figures["compute_dtype"]]  # as the machine multiplies
    assert sampler["weight_bytes"] >= bytes_each * 118_000
    assert figures["speedup_vs_single_process"] == step["yardstick"]["speedup"]
    assert set(step["run"]["peak_memory_bytes"]) >= {"conductor", "sampler", "reference", "learner"}
    assert step["run"]["staleness"] == 0
    assert figures["sections"]["async"]["asynchronous"]["staleness"] == 1

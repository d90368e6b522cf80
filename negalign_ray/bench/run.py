"""`negalign-ray bench`: all sections on one Ray cluster, one dictionary of figures.

sampler --> learner --> step (with the yardstick) --> async --> six ratios, and everything they came from
"""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray

from negalign_ray.actors.cluster import start_ray
from negalign_ray.bench.learner import LearnerFigures, measure_learner
from negalign_ray.bench.machine import describe_machine
from negalign_ray.bench.overlap import AsyncFigures, measure_async
from negalign_ray.bench.sampler import SamplerFigures, measure_sampler
from negalign_ray.bench.sizes import Sizes
from negalign_ray.bench.step import StepFigures, measure_step
from negalign_ray.config import Config
from negalign_ray.errors import ConfigError

log = logging.getLogger(__name__)

SECTIONS: dict[str, Callable[[Config, Sizes, Path], Any]] = {
    "sampler": measure_sampler,
    "learner": measure_learner,
    "step": measure_step,
    "async": measure_async,
}
# Where a section's processes write; without it a failed section would leave no trace of why.
LOGS = "logs of its processes: {folder}/*/logs"


def bench(config: Config, *, sections: Sequence[str] | None = None, sizes: Sizes | None = None) -> dict[str, Any]:
    """Run the sections (None = all) and return plain data for JSON; ratios of sections left out are None.

    ConfigError: a section that does not exist, or roles on a GPU (ceilings here are those of CPU processes). What the
    sections raise passes through; their logs are then kept, and the log says where.
    """
    chosen, sizes = _checked(config, sections), sizes or Sizes()
    folder = Path(tempfile.mkdtemp(prefix="negalign-bench-"))
    started = time.perf_counter()
    figures: dict[str, Any] = {}
    section_s: dict[str, float] = {}
    owns_cluster = not ray.is_initialized()
    if owns_cluster:
        start_ray()
    try:
        for name in chosen:
            log.info("bench: %s", name)
            section_started = time.perf_counter()
            figures[name] = SECTIONS[name](config, sizes, folder)
            section_s[name] = time.perf_counter() - section_started
    except BaseException:
        log.error(LOGS.format(folder=folder))
        raise
    finally:
        if owns_cluster:
            ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
    return {
        **headline(figures),
        "model": config.model.path,
        "machine": asdict(describe_machine()),
        "sizes": asdict(sizes),
        "sections": {name: asdict(result) for name, result in figures.items()},
        "section_s": section_s,
        "load_average": os.getloadavg(),  # far above the number of cores: something else was running
        "wall_s": time.perf_counter() - started,
    }


def headline(figures: dict[str, Any]) -> dict[str, float | str | None]:
    """What docs/benchmarks.md says what to expect of, and what is needed to read it."""
    sampler: SamplerFigures | None = figures.get("sampler")
    learner: LearnerFigures | None = figures.get("learner")
    step: StepFigures | None = figures.get("step")
    overlap: AsyncFigures | None = figures.get("async")
    return {
        "sampler_vs_bare_vllm": sampler.sampler_vs_bare_vllm if sampler else None,
        "learner_frac_of_ceiling": learner.learner_frac_of_ceiling if learner else None,
        "orchestration_frac": step.run.orchestration_frac if step else None,
        "weight_update_s": sampler.weight_update_s if sampler else None,
        "async_over_sync": overlap.async_over_sync if overlap else None,
        "speedup_vs_single_process": step.yardstick.speedup if step else None,
        "weight_gather_s": step.run.stages["gather"].seconds if step else None,
        "weight_update_bytes": sampler.weight_bytes if sampler else None,
        "compute_dtype": learner.compute_dtype if learner else None,
        "fp32_matmul_gflops": learner.fp32_matmul_gflops if learner else None,
        "bf16_matmul_gflops": learner.bf16_matmul_gflops if learner else None,
    }


def _checked(config: Config, sections: Sequence[str] | None) -> list[str]:
    """The chosen sections, in the order they are run in."""
    unknown = sorted(set(sections or ()) - set(SECTIONS))
    if unknown:
        raise ConfigError(f"--only {unknown[0]}: no such section; choose from {', '.join(SECTIONS)}.")
    for role in ("samplers", "scorers", "references", "learners"):
        gpus = getattr(config, role).gpus
        if gpus:
            raise ConfigError(f"{role}.gpus={gpus:g}: bench measures CPU processes; set it to 0.")
    return [name for name in SECTIONS if not sections or name in sections]

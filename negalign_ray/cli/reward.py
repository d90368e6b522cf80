"""`negalign-ray train-reward`: a reward model from a file of good and bad answers.

rows.jsonl --split by prompt--> share --train on Ray--> OUT/  (kind: reward_model, target: OUT), with its report
                                rest  ----------------> OUT/rest.jsonl  (for data.path), where --frac leaves any
"""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from negalign_ray.settings.reward import RewardTrainingConfig


def train_and_show(
    settings: RewardTrainingConfig, *, data: str, folder: Path, overwrite: bool, out: Console, err: Console
) -> None:
    """Train, print the report, draw the curve, and say how the model is used."""
    from negalign_ray.actors.reward_training import PLOT_FILE, REPORT_FILE, REST_FILE, train_reward
    from negalign_ray.evaluation.reward_plot import calibration_plot

    with err.status("checking") as status:
        report = train_reward(
            settings,
            data=data,
            out=folder,
            overwrite=overwrite,
            on_progress=lambda phase, row: status.update(phase_text(phase, row)),
        )
    out.print(figures_table(report))
    for table in (reliability_table(report), behaviour_table(report)):
        if table.row_count:
            out.print(table)
    for head in report["heads"]:
        out.print(f"{head['name']}: {head['verdict']}", markup=False, highlight=False, soft_wrap=True)
    lines = {"use it": usage(report, folder), "report": str(folder / REPORT_FILE)}
    lines["curve"] = str(calibration_plot(report["heads"], folder / PLOT_FILE))
    if (folder / REST_FILE).exists():
        lines["rest"] = f"{folder / REST_FILE}  ({report['data']['num_rest_prompts']} prompts, for data.path)"
    for name, value in lines.items():
        out.print(f"{name:8} {value}", markup=False, highlight=False, soft_wrap=True)


def phase_text(phase: str, row: dict[str, Any]) -> str:
    """ "training: step 12/90, loss 0.412" """
    if "step" in row:
        return f"{phase}: step {row['step']}/{row['steps']}, loss {row['loss']:.3f}"
    if "texts" in row:
        return f"{phase}: {min(row['texts'], row['of_texts'])} of {row['of_texts']} texts read"
    return phase


def figures_table(report: dict[str, Any]) -> Table:
    """One line per head: ranking of the model and of the answer's length alone, then calibration."""
    table = Table(title="held-out prompts", title_justify="left")
    for heading in ("head", "prompts", "high : low", "AUROC", "of length", "pairs", "pair accuracy", "of length"):
        table.add_column(heading, justify="left" if heading == "head" else "right")
    table.add_column("ECE", justify="right")
    table.add_column("ECE, scaled (T)", justify="right")
    for head in report["heads"]:
        table.add_row(
            head["name"],
            str(head["num_prompts"]),
            f"{head['num_high']} : {head['num_low']}",
            _figure(head["auroc"]),
            _figure(head["length_auroc"]),
            str(head["num_pairs"]),
            _figure(head["pair_accuracy"]),
            _figure(head["length_pair_accuracy"]),
            _figure(head["ece"]),
            f"{_figure(head['ece_scaled'])} ({head['temperature']:.2f})",
        )
    return table


def reliability_table(report: dict[str, Any]) -> Table:
    """Per head and bin: how many predictions, what they say on average, and how often it is so."""
    table = Table(title="reliability (raw, before temperature scaling)", title_justify="left")
    for heading in ("head", "bin", "answers", "predicted", "really so"):
        table.add_column(heading, justify="left" if heading == "head" else "right")
    for head in report["heads"]:
        for entry in head["reliability"]:
            if entry["num"]:
                span = f"{entry['low']:.1f} - {entry['high']:.1f}"
                cells = (_figure(entry["mean_predicted"]), _figure(entry["share"]))
                table.add_row(head["name"], span, str(entry["num"]), *cells)
    return table


def behaviour_table(report: dict[str, Any]) -> Table:
    table = Table(title="by behaviour", title_justify="left")
    for heading in ("head", "behaviour", "high : low", "AUROC", "of length"):
        table.add_column(heading, justify="left" if heading in ("head", "behaviour") else "right")
    for head in report["heads"]:
        for entry in head["by_behaviour"]:
            classes = f"{entry['num_high']} : {entry['num_low']}"
            cells = (_figure(entry["auroc"]), _figure(entry["length_auroc"]))
            table.add_row(head["name"], entry["behaviour"], classes, *cells)
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def usage(report: dict[str, Any], folder: Path) -> str:
    """An entry of scorers.heads or evaluation.heads that reads the first head."""
    first = report["heads"][0]
    label = f", label: {first['name']}" if len(report["heads"]) > 1 else ""
    return f"{{name: reward, kind: reward_model, target: {folder}, direction: {first['direction']}{label}}}"

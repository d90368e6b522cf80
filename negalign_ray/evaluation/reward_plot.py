"""The calibration curves of a reward model as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure  # not pyplot: no window system, no global state


def calibration_plot(reports: Sequence[dict[str, Any]], path: Path) -> Path:
    """One panel per head: share of hits over the mean prediction of each bin, before and after temperature scaling."""
    figure = Figure(figsize=(4.2 * len(reports), 4.2), layout="constrained")
    panels = figure.subplots(1, len(reports), squeeze=False)[0]
    for panel, report in zip(panels, reports, strict=True):
        panel.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="perfect")
        for key, ece, style in (("reliability", "ece", "o-"), ("reliability_scaled", "ece_scaled", "s--")):
            bins = [entry for entry in report.get(key, []) if entry["num"]]
            if not bins:
                continue
            what = "raw" if key == "reliability" else f"T = {report['temperature']:.2f}"
            panel.plot(
                [entry["mean_predicted"] for entry in bins],
                [entry["share"] for entry in bins],
                style,
                markersize=4,
                label=f"{what}, ECE {report[ece]:.3f}",
            )
        what = "first answer is better" if report["objective"] == "pairwise" else report["direction"]
        panel.set(title=report["name"], xlabel=f"predicted probability: {what}", ylabel="share that really is")
        panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        panel.legend(loc="upper left", fontsize=8)
    figure.savefig(path, dpi=120)
    return path

"""Draw a run's training curves into one PNG: `python scripts/plot_run.py RUN_DIR OUT.png`."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from negalign_ray.metrics import read_metrics

PANELS = {
    "loss (nats)": {"loss": "learner/loss"},
    "terms of the loss (nats)": {"anchor": "learner/anchor_nats", "negative": "learner/negative_nats"},
    "summed log-ratio to the reference (nats)": {
        "negatives": "learner/negative_logratio_nats",
        "own samples": "learner/sample_logratio_nats",
    },
    "seconds per step": {
        "step": "learner/step_s",
        "learner": "learner/compute_s",
        "samplers": "sampler/busy_s",
        "references": "reference/busy_s",
    },
}


def main(run_dir: Path, out: Path) -> None:
    rows = read_metrics(run_dir / "metrics.jsonl")
    figure, axes = plt.subplots(1, len(PANELS), figsize=(4 * len(PANELS), 3), constrained_layout=True)
    for axis, (title, lines) in zip(axes, PANELS.items(), strict=True):
        for label, key in lines.items():
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            axis.plot(*zip(*points, strict=True), label=label)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("optimizer step")
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.savefig(out, dpi=80)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

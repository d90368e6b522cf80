"""The text of docs/metrics.md, from the catalogue."""

from negalign_ray.metrics import METRICS
from negalign_ray.monitoring.series import OF_RUNS, SERIES, Series

HEAD = """# Metrics

Written to `runs/<name>/metrics.jsonl`, one JSON object per step, and as TensorBoard events beside it
(`tensorboard --logdir runs`); with `run.trackers` also for Weights & Biases, MLflow or trackio, offline in
the run directory (`trackers.py`); with `run.prometheus` also on Ray's metrics endpoint, under the name in the last
column ([monitoring.md](monitoring.md)). Every row also holds `step` (optimizer steps done) and `time_s` (seconds
since the run began). A value that was NaN or infinite stands as `null`. `{head}` is the name of a reward
head, `{behaviour}` what the data calls a kind of harm. The unit `total` counts since the start of the run.
This page is generated from the catalogue in `negalign_ray/metrics.py` by `make docs`.
"""
OF_RUNS_HEAD = """## Prometheus only

| Prometheus | labels | meaning |
|---|---|---|
"""


def catalogue_markdown() -> str:
    """One table per role, then the series that are no metric of a step."""
    lines = [HEAD.rstrip()]
    role = None
    for key, metric in METRICS.items():
        if role != (role := key.split("/")[0]):
            lines += [
                "",
                f"## {role}",
                "",
                "| key | unit | meaning | a bad value | Prometheus |",
                "|---|---|---|---|---|",
            ]
        lines.append(f"| `{key}` | {metric.unit} | {metric.meaning} | {metric.bad} | {_name(SERIES[key])} |")
    lines += ["", OF_RUNS_HEAD.rstrip()]
    lines += [f"| `{series.exported}` | {', '.join(series.labels)} | {series.meaning} |" for series in OF_RUNS]
    return "\n".join(lines) + "\n"


def _name(series: Series) -> str:
    """Its labels stand behind the name, but for `run`, which all have."""
    labels = ", ".join(label for label in series.labels if label != "run")
    return f"`{series.exported}{f'{{{labels}}}' if labels else ''}`"

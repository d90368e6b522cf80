"""Experiment trackers beside metrics.jsonl and TensorBoard: Weights & Biases, MLflow and trackio, each one small sink.

Offline: they write into the run directory and reach no server, unless the library's own environment variable names one
(WANDB_MODE=online, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID) where the conductor runs. The libraries are the extra
`tracking`, and imported only where `run.trackers` asks for them.
"""

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from negalign_ray.config import Config
from negalign_ray.errors import ConfigError
from negalign_ray.metrics import Sink

PROJECT = "negalign_ray"
NO_REPORTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
}  # of use and crashes, to their makers
SECTIONS = {"model", "data", "method", "sampling", "learners"}  # what is told of the settings; no address of a service


class WandbSink:
    """<run>/wandb/offline-run-*; `wandb sync FOLDER` uploads it."""

    def __init__(self, run_dir: Path, *, name: str, settings: Mapping[str, Any]) -> None:
        import wandb

        quiet = wandb.Settings(
            silent=True, console="off", save_code=False, disable_git=True, x_disable_stats=True, x_disable_meta=True
        )
        self._run = wandb.init(
            project=PROJECT,
            name=name,
            dir=str(run_dir),
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            config=dict(settings),
            settings=quiet,
        )

        self._run.define_metric("eval/*", step_metric="eval/version")
        self._step = 0

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._step = max(self._step, step)  # it drops what comes behind a later step, as an evaluation's row may
        self._run.log(dict(values), step=self._step)

    def close(self) -> None:
        import wandb

        self._run.finish()
        wandb.teardown()  # waits for the process that writes the file; `finish` alone returns before


class MLflowSink:
    """<run>/mlflow/mlflow.db; `mlflow ui --backend-store-uri sqlite:///<run>/mlflow/mlflow.db` shows it."""

    def __init__(self, run_dir: Path, *, name: str, settings: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient

        folder = (run_dir / "mlflow").resolve()
        server = os.environ.get("MLFLOW_TRACKING_URI")
        folder.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=server or f"sqlite:///{folder / 'mlflow.db'}")
        known = self._client.get_experiment_by_name(PROJECT)
        artifacts = None if server else (folder / "artifacts").as_uri()
        experiment = known.experiment_id if known else self._client.create_experiment(PROJECT, artifacts)
        self._run_id = self._client.create_run(experiment, run_name=name).info.run_id
        self._client.log_dict(self._run_id, dict(settings), "settings.json")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [Metric(mlflow_key(key), value, now_ms, step) for key, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


def mlflow_key(key: str) -> str:
    """MLflow takes letters, digits and `_-. /` in names; behaviours are named by the data.

    "behaviour/Why? Me!/margin_nats" -> "behaviour/Why_ Me_/margin_nats"
    """
    return re.sub(r"[^\w\-. /]", "_", key, flags=re.ASCII)


class TrackioSink:
    """<run>/trackio/negalign_ray.db; `TRACKIO_DIR=<run>/trackio trackio show` shows it."""

    def __init__(self, run_dir: Path, *, name: str, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("TRACKIO_DIR", str((run_dir / "trackio").resolve()))  # read when it is imported
        import trackio

        self._run = trackio.init(
            project=PROJECT,
            name=name,
            resume="allow",
            config=dict(settings),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[..., Sink]] = {"wandb": WandbSink, "mlflow": MLflowSink, "trackio": TrackioSink}


def _is_installed(name: str) -> bool:
    return find_spec(name) is not None


def require_installed(names: Sequence[str], *, is_installed: Callable[[str], bool] = _is_installed) -> None:
    """ConfigError for a tracker whose library is missing."""
    missing = [name for name in names if not is_installed(name)]
    if missing:
        raise ConfigError(
            f"run.trackers={list(names)}: {missing[0]} is not installed; `pip install {missing[0]}` (the extra "
            "`tracking` has all of them), or leave it out. metrics.jsonl and TensorBoard events are written anyway."
        )


def open_trackers(config: Config) -> list[Sink]:
    """One sink for every entry of `run.trackers`."""
    for variable, value in NO_REPORTS.items() if config.run.trackers else ():
        os.environ.setdefault(variable, value)  # read when the library is imported
    settings = config.model_dump(mode="json", include=SECTIONS)
    return [TRACKERS[name](config.run_dir, name=config.run.name, settings=settings) for name in config.run.trackers]

"""Experiment trackers beside metrics.jsonl and TensorBoard: Weights & Biases, MLflow and trackio, each one small sink.

    MetricsWriter --rows--> Trackers --queue--> one thread each: open, write every row, close

Offline: they write into the run directory and reach no server, unless the library's own environment variable names one
(WANDB_MODE=online, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID) where the conductor runs. The libraries are the extra
`tracking`, and imported only where `run.trackers` asks for them.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from negalign_ray.config import Config
from negalign_ray.errors import ConfigError
from negalign_ray.metrics import Sink

log = logging.getLogger(__name__)
PROJECT = "negalign_ray"
MAX_ROWS_BEHIND = 1000
CLOSE_S = 30.0  # of the minute that a run gives its conductor to end
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

    def close(self, *, failed: bool = False) -> None:
        import wandb

        self._run.finish(exit_code=int(failed))
        wandb.teardown()  # waits for the process that writes the file; `finish` alone returns before


class MLflowSink:
    """<run>/mlflow/mlflow.db; `mlflow ui --backend-store-uri sqlite:///<run>/mlflow/mlflow.db` shows it."""

    def __init__(self, run_dir: Path, *, name: str, settings: Mapping[str, Any]) -> None:
        from mlflow import MlflowClient

        folder = (run_dir / "mlflow").resolve()
        server = os.environ.get("MLFLOW_TRACKING_URI")
        folder.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=server or f"sqlite:///{folder / 'mlflow.db'}")
        began = folder / "run_id"  # of a run that is resumed
        if began.is_file():
            self._run_id = began.read_text(encoding="utf-8")
            self._client.update_run(self._run_id, status="RUNNING")
            return
        known = self._client.get_experiment_by_name(PROJECT)
        artifacts = None if server else (folder / "artifacts").as_uri()
        experiment = known.experiment_id if known else self._client.create_experiment(PROJECT, artifacts)
        self._run_id = self._client.create_run(experiment, run_name=name).info.run_id
        began.write_text(self._run_id, encoding="utf-8")
        self._client.log_dict(self._run_id, dict(settings), "settings.json")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [Metric(mlflow_key(key), value, now_ms, step) for key, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self, *, failed: bool = False) -> None:
        self._client.set_terminated(self._run_id, status="FAILED" if failed else "FINISHED")


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

    def close(self, *, failed: bool = False) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[..., Sink]] = {"wandb": WandbSink, "mlflow": MLflowSink, "trackio": TrackioSink}


class _Tracker:
    """One sink, opened and fed in a thread: a server that is slow, silent or gone costs the tracker, never a step."""

    def __init__(self, name: str, make: Callable[[], Sink]) -> None:
        self._name = name
        self._rows: SimpleQueue[tuple[int, Mapping[str, float]] | None] = SimpleQueue()
        self._is_given_up, self._failed = threading.Event(), False
        self._thread = threading.Thread(target=self._work, args=(make,), name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def _work(self, make: Callable[[], Sink]) -> None:
        try:
            sink = make()
            while (row := self._rows.get()) is not None and not self._is_given_up.is_set():
                sink.write(*row)
            sink.close(failed=self._failed)
        except BaseException as error:  # whatever the library raises, an exit too: metrics.jsonl has the rows
            self._give_up(f"{type(error).__name__}: {error}")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self._is_given_up.is_set():
            return
        self._rows.put((step, values))
        if self._rows.qsize() > MAX_ROWS_BEHIND:
            self._give_up(f"it is more than {MAX_ROWS_BEHIND} rows behind")

    def end(self, *, failed: bool) -> None:
        self._failed = failed
        self._rows.put(None)

    def wait(self, timeout_s: float) -> None:
        if self._is_given_up.is_set():  # its thread may hang for ever
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._give_up(f"the run ends, and it still has not taken all rows ({self._rows.qsize()} are waiting)")

    def _give_up(self, reason: str) -> None:
        if not self._is_given_up.is_set():
            self._is_given_up.set()
            log.warning("run.trackers: %s is given up: %s", self._name, reason)


class Trackers:
    """Sink of MetricsWriter: the trackers of a run. None of its calls waits, but for `close`, CLOSE_S at most."""

    def __init__(self, makers: Mapping[str, Callable[[], Sink]]) -> None:
        self._trackers = [_Tracker(name, make) for name, make in makers.items()]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.write(step, values)

    def close(self, *, failed: bool = False, within_s: float = CLOSE_S) -> None:
        for tracker in self._trackers:
            tracker.end(failed=failed)
        until_s = time.monotonic() + within_s
        for tracker in self._trackers:
            tracker.wait(max(0.0, until_s - time.monotonic()))


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


def open_trackers(config: Config, *, known: Mapping[str, Callable[..., Sink]] = TRACKERS) -> list[Sink]:
    """One sink for all entries of `run.trackers`; none without any. Returns at once: threads open them."""
    if not config.run.trackers:
        return []
    for variable, value in NO_REPORTS.items():
        os.environ.setdefault(variable, value)  # read when the library is imported
    settings = config.model_dump(mode="json", include=SECTIONS)
    arguments = {"name": config.run.name, "settings": settings}
    return [Trackers({name: partial(known[name], config.run_dir, **arguments) for name in config.run.trackers})]

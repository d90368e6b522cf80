"""Trackers get every finite value of every row, stay offline, and never end a run; real libraries where installed."""

import logging
import os
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from negalign_ray.actors.plan_checks import check_settings
from negalign_ray.config import Config, RunConfig
from negalign_ray.errors import ConfigError
from negalign_ray.metrics import MetricsWriter, read_metrics
from negalign_ray.settings import load_config
from negalign_ray.trackers import (
    MAX_ROWS_BEHIND,
    NO_REPORTS,
    TRACKERS,
    Trackers,
    mlflow_key,
    open_trackers,
    require_installed,
)

ROWS = ((1, {"learner/loss": 0.75, "behaviour/Why? Me!/margin_nats": -1.5}), (2, {"learner/loss": 0.5}))


class Noting:
    def __init__(self, fail_at: int | None = None) -> None:
        self.rows, self.closed, self.failed, self.fail_at = [], 0, None, fail_at

    def write(self, step, values) -> None:
        if step == self.fail_at:
            raise OSError("disk full")
        self.rows.append((step, dict(values)))

    def close(self, *, failed: bool = False) -> None:
        self.closed += 1
        self.failed = failed


class Hanging(Noting):
    """Its server takes the first row and does not answer."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.answers = threading.Event(), threading.Event()

    def write(self, step, values) -> None:
        self.asked.set()
        self.answers.wait(60)
        super().write(step, values)


@pytest.fixture
def hanging():
    sink = Hanging()
    yield sink
    sink.answers.set()


def refused() -> Noting:
    raise ConnectionError("no server at 127.0.0.1:5000")


def test_a_sink_gets_the_measured_values_of_every_row_and_is_closed_once(tmp_path):
    sink = Noting()
    with MetricsWriter(tmp_path, tensorboard=False, sinks=[sink]) as writer:
        writer.write(1, {"learner/tokens": 7, "learner/mismatch_nats": None})
        writer.write(2, {"learner/loss": 0.75, "learner/grad_norm": float("nan")})
    writer.close()
    assert sink.rows == [(1, {"learner/tokens": 7.0}), (2, {"learner/loss": 0.75, "conductor/nonfinite_values": 1.0})]
    assert sink.closed == 1


def test_a_sink_that_fails_is_given_up_with_a_warning_and_the_rows_and_other_sinks_go_on(tmp_path, caplog):
    failing, fine = Noting(fail_at=1), Noting()
    with (
        caplog.at_level(logging.WARNING),
        MetricsWriter(tmp_path, tensorboard=False, sinks=[failing, fine]) as writer,
    ):
        for step, values in ROWS:
            writer.write(step, values)
    assert [row["learner/loss"] for row in read_metrics(tmp_path)] == [0.75, 0.5]
    assert [step for step, _ in fine.rows] == [1, 2]
    assert (failing.rows, failing.closed) == ([], 0)
    assert [record.getMessage() for record in caplog.records] == ["Noting is given up: OSError: disk full"]


def test_a_tracker_that_cannot_be_opened_is_given_up_with_a_warning_and_the_run_and_other_trackers_go_on(
    tmp_path, caplog
):
    fine = Noting()
    config = Config(run=RunConfig(name="mine", dir=tmp_path, trackers=("wandb", "mlflow")))
    known = {"wandb": lambda run_dir, **_: refused(), "mlflow": lambda run_dir, **_: fine}
    with MetricsWriter(config.run_dir, tensorboard=False, sinks=open_trackers(config, known=known)) as writer:
        for step, values in ROWS:
            writer.write(step, values)
    assert len(read_metrics(config.run_dir)) == 2
    assert ([step for step, _ in fine.rows], fine.closed) == ([1, 2], 1)
    assert [record.getMessage() for record in caplog.records] == [
        "run.trackers: wandb is given up: ConnectionError: no server at 127.0.0.1:5000"
    ]


def test_a_tracker_that_hangs_delays_no_step_and_no_other_tracker_and_the_end_for_a_moment_only(hanging, caplog):
    fine = Noting()
    trackers = Trackers({"wandb": lambda: hanging, "mlflow": lambda: fine})
    started_s = time.monotonic()
    for step in range(50):
        trackers.write(step, {"learner/loss": 0.5})
    assert hanging.asked.wait(10)
    trackers.close(failed=True, within_s=0.2)
    assert time.monotonic() - started_s < 10
    assert (len(fine.rows), fine.closed, fine.failed) == (50, 1, True)
    [record] = caplog.records
    assert record.getMessage().startswith("run.trackers: wandb is given up: the run ends, and it still has not taken")


def test_a_tracker_that_is_slow_to_open_gets_every_row_in_order():
    opens, sink = threading.Event(), Noting()

    def slow() -> Noting:
        opens.wait(60)
        return sink

    trackers = Trackers({"wandb": slow})
    for step, values in ROWS:
        trackers.write(step, values)
    assert sink.rows == []
    opens.set()
    trackers.close()
    assert sink.rows == list(ROWS)
    assert sink.failed is False


def test_rows_of_a_tracker_that_takes_none_are_not_kept_for_ever(hanging, caplog):
    trackers = Trackers({"wandb": lambda: hanging})
    for step in range(MAX_ROWS_BEHIND + 100):
        trackers.write(step, {})
    [record] = caplog.records
    assert record.getMessage() == f"run.trackers: wandb is given up: it is more than {MAX_ROWS_BEHIND} rows behind"
    hanging.answers.set()
    trackers.close()
    assert len(caplog.records) == 1
    assert len(hanging.rows) <= 1, "what it was given up for is not written afterwards"


def test_a_tracker_that_is_not_installed_is_refused_with_what_to_install():
    with pytest.raises(
        ConfigError, match=r"run\.trackers=\['wandb', 'mlflow'\]: mlflow is not installed; `pip install"
    ):
        require_installed(("wandb", "mlflow"), is_installed=lambda name: name == "wandb")
    require_installed(("wandb",), is_installed=lambda name: True)


def test_the_plan_s_checks_ask_whether_trackers_are_there():
    missing = [name for name in TRACKERS if find_spec(name) is None]
    if not missing:
        pytest.skip("all trackers are installed")
    config = Config(run=RunConfig(trackers=(missing[0],)))
    with pytest.raises(ConfigError, match=rf"{missing[0]} is not installed"):
        check_settings(config, learner_dtype="float32")


def test_an_unknown_tracker_is_refused():
    with pytest.raises(ConfigError, match=r"run\.trackers\[0\]=wandbb"):
        load_config(preset="d2o", overrides=["run.trackers=[wandbb]"])


def test_names_that_mlflow_refuses_are_mended():
    assert mlflow_key("behaviour/Why? Me!/margin_nats") == "behaviour/Why_ Me_/margin_nats"
    assert mlflow_key("behaviour/größe/x") == "behaviour/gr__e/x"
    assert mlflow_key("learner/loss") == "learner/loss"


@pytest.fixture
def write_rows(tmp_path, monkeypatch):
    """Two rows through the real library `name`; its own variables, which could name a server, are not set."""
    for variable in ("WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_DIR", "TRACKIO_SPACE_ID", *NO_REPORTS):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)

    def write(name: str, *, rows=ROWS, failed: bool = False) -> Path:
        config = Config(run=RunConfig(name="mine", dir=tmp_path, trackers=(name,)))
        writer = MetricsWriter(config.run_dir, tensorboard=False, sinks=open_trackers(config))
        for step, values in rows:
            writer.write(step, values)
        writer.close(failed=failed)
        return config.run_dir

    return write


def needs(*libraries: str) -> pytest.MarkDecorator:
    """Not importorskip: trackio reads its folder when it is imported."""
    missing = [name for name in libraries if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


@needs("wandb")
def test_wandb_keeps_an_offline_run_in_the_run_directory(write_rows, caplog):
    run_dir = write_rows("wandb")
    assert not caplog.records
    [written] = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    content = written.read_bytes()
    assert content.count(b"learner/loss") >= len(ROWS)
    assert b"behaviour/Why? Me!/margin_nats" in content
    assert b"groups_per_step" in content, "the settings of the run"


@needs("mlflow", "sqlalchemy")  # mlflow-skinny alone has no local store
def test_mlflow_keeps_every_value_with_its_step_and_a_resumed_run_goes_on_in_the_same_one(write_rows, caplog):
    from mlflow import MlflowClient

    run_dir = write_rows("mlflow", failed=True)
    client = MlflowClient(tracking_uri=f"sqlite:///{run_dir / 'mlflow' / 'mlflow.db'}")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    [experiment] = [each for each in client.search_experiments() if each.name == "negalign_ray"]
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("mine", "FAILED")
    assert run.data.metrics["behaviour/Why_ Me_/margin_nats"] == -1.5
    assert list(run_dir.glob("mlflow/artifacts/*/artifacts/settings.json"))

    write_rows("mlflow", rows=((3, {"learner/loss": 0.25}),))
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "learner/loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.75), (2, 0.5), (3, 0.25)]
    assert not [record for record in caplog.records if record.name.startswith("negalign_ray")]


@needs("trackio")
def test_trackio_keeps_every_value_with_its_step_in_the_run_directory(write_rows, caplog):
    run_dir = write_rows("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    assert not caplog.records
    assert Path(os.environ["TRACKIO_DIR"]) == run_dir / "trackio"
    logs = SQLiteStorage.get_logs("negalign_ray", "mine")
    assert [(row["step"], row["learner/loss"]) for row in logs] == [(1, 0.75), (2, 0.5)]
    assert logs[0]["behaviour/Why? Me!/margin_nats"] == -1.5


def test_trackers_are_imported_only_where_a_run_asks_for_them():
    code = (
        "import sys, negalign_ray.trackers as trackers; from negalign_ray.config import Config\n"
        "assert trackers.open_trackers(Config()) == []\n"
        "assert not {'wandb', 'mlflow', 'trackio', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

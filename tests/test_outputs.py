"""Outputs that cannot be written are refused before any work, and a file system that refuses later is no traceback."""

import errno
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from negalign_ray import cli
from negalign_ray.cli.outputs import require_file, require_folder
from negalign_ray.errors import ConfigError, StorageError
from tests.report.runs import make_run

NOWHERE = "/proc/x/y"  # a folder in which not even root makes anything


@pytest.fixture
def call(monkeypatch):
    monkeypatch.setattr(cli, "err", Console(width=300, stderr=True))

    def run(*arguments):
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stderr

    return run


def test_a_place_that_can_be_written_stays_as_it_is(tmp_path):
    require_file(tmp_path / "new" / "folder" / "file.json", option="--json")
    require_folder(tmp_path / "new" / "folder", option="--out")
    require_folder(tmp_path, option="--out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.json").write_text("kept")
    require_file(tmp_path / "old.json", option="--json")
    assert (tmp_path / "old.json").read_text() == "kept"
    require_file(None, option="--json")
    require_folder(None, option="--out")


def test_devices_are_files_that_can_be_written():
    require_file(Path("/dev/null"), option="--json")


def test_what_cannot_be_written_is_said_with_the_option_and_the_remedy(tmp_path):
    with pytest.raises(StorageError, match=r"^--json /proc/x/y cannot be written: .*; name another place"):
        require_file(Path(NOWHERE), option="--json")
    with pytest.raises(StorageError, match=r"^--out /proc/x/y cannot be written"):
        require_folder(Path(NOWHERE), option="--out")
    with pytest.raises(ConfigError, match=r"^--json \S+ is a folder; name a file, as in \S+/NAME\.$"):
        require_file(tmp_path, option="--json")
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises((ConfigError, StorageError), match=r"--out \S+file"):
            require_folder(wrong, option="--out")


@pytest.mark.parametrize(
    "line",
    [
        ("evaluate", "smollm2-135m-instruct", "--out", NOWHERE),
        ("evaluate", "smollm2-135m-instruct", "--json", NOWHERE),
        ("evaluate", "smollm2-135m-instruct", "--set", "run.dir=/proc/x"),
        ("train", "--preset", "quickstart", "--set", "run.dir=/proc/x"),
        ("diagnose", "--set", "data.path=quickstart", "--set", "run.dir=/proc/x"),
        ("diagnose", "--run", NOWHERE),
        ("compare", "no.yaml", "--out", NOWHERE),
        ("train-reward", "no.jsonl", NOWHERE),
        ("data", "judge", "no.jsonl", NOWHERE),
        ("report", ".", "--out", f"{NOWHERE}.html"),
        ("bench", "--json", NOWHERE),
        ("plan", "--json", NOWHERE),
        ("doctor", "--json", NOWHERE),
    ],
)
def test_every_command_looks_first(call, line):
    code, message = call(*line)
    assert code == 8
    assert message.startswith("StorageError: ")
    assert "/proc/x" in message
    assert "cannot be written" in message


@pytest.mark.parametrize("command", [("evaluate", "smollm2-135m-instruct"), ("bench",), ("plan",), ("doctor",)])
def test_a_folder_in_the_place_of_the_json_file_is_refused(call, command, tmp_path):
    code, message = call(*command, "--json", tmp_path)
    assert code == 2
    assert message.startswith(f"ConfigError: --json {tmp_path} is a folder")


def test_a_report_into_a_folder_leaves_nothing_behind(call, tmp_path):
    run = make_run(tmp_path / "demo")
    (tmp_path / "there").mkdir()
    code, message = call("report", run, "--out", tmp_path / "there")
    assert code == 2
    assert "name a file" in message
    assert {path.name for path in tmp_path.iterdir()} == {"demo", "there"}


def test_a_report_that_is_refused_late_leaves_no_torn_file(tmp_path):
    from negalign_ray.report import write_report

    run = make_run(tmp_path / "demo")
    (tmp_path / "page.html").mkdir()
    with pytest.raises(IsADirectoryError):
        write_report([run], tmp_path / "page.html", max_samples=0)
    assert not (tmp_path / "page.html.tmp").exists()


@pytest.mark.parametrize(
    ("number", "says"), [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "change its permissions")]
)
def test_a_file_system_that_refuses_later_is_one_message(call, monkeypatch, number, says):
    def fail(path):
        raise OSError(number, "as the system says", "/some/file")

    monkeypatch.setattr("negalign_ray.settings.list_presets", lambda: fail(None))
    code, message = call("presets")
    assert code == 8
    assert message.startswith("StorageError: /some/file: as the system says; ")
    assert says in message


def test_other_errors_of_the_system_keep_their_traceback(call, monkeypatch):
    def fail():
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    monkeypatch.setattr("negalign_ray.settings.list_presets", fail)
    with pytest.raises(ConnectionResetError):
        call("presets")

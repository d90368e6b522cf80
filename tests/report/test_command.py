"""`negalign-ray report`, and the report at the end of a run."""

import pytest
from rich.console import Console
from typer.testing import CliRunner

from negalign_ray import cli
from negalign_ray.actors.results import try_report
from negalign_ray.settings import load_config
from tests.report.runs import make_run


@pytest.fixture
def path(tmp_path):
    return make_run(tmp_path / "demo")


def command(*arguments):
    return CliRunner().invoke(cli.app, ["report", *map(str, arguments)])


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setattr(cli, "out", Console(width=200))


def test_one_run_has_its_report_in_its_folder(path):
    result = command(path)
    assert result.exit_code == 0
    assert result.stdout == f"{path / 'report.html'}\n"
    assert (path / "report.html").is_file()


def test_several_runs_have_it_here_or_where_it_is_wanted(path, tmp_path, monkeypatch):
    other = make_run(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    assert command(path, other).stdout == "report.html\n"
    assert (tmp_path / "report.html").is_file()
    result = command(path, other, "--out", tmp_path / "both.html", "--max-samples", 30)
    assert result.stdout == f"{tmp_path / 'both.html'}\n6 of 240 training groups are embedded.\n"


def test_a_folder_that_is_no_run_ends_with_the_exit_code_of_data(tmp_path):
    result = command(tmp_path)
    assert result.exit_code == 3
    assert not (tmp_path / "report.html").exists()


def config_of(path, *overrides):
    return load_config(file=path / "config.yaml", overrides=[f"run.dir={path.parent}", *overrides])


def test_a_finished_run_has_a_report_with_as_many_texts_as_its_settings_allow(path):
    try_report(config_of(path, "report.max_samples=0"))
    assert "all 144 prompts were left out" in (path / "report.html").read_text()


@pytest.mark.parametrize("broken", ["max_samples: 0", "max_samples: none of them", "max_samples: [", "max_samples: -3"])
def test_the_command_embeds_no_text_of_a_run_whose_settings_allow_none(path, tmp_path, broken):
    """Also where they cannot be read, and beside another run that allows 1000."""
    other = make_run(tmp_path / "other")
    text = (path / "config.yaml").read_text()
    assert "max_samples: 1000" in text
    (path / "config.yaml").write_text(text.replace("max_samples: 1000", broken))
    assert "0 of 24 evaluated prompts are embedded." in command(path).stdout
    result = command(path, other, "--out", tmp_path / "both.html")
    assert "0 of 24 evaluated prompts are embedded." in result.stdout
    assert "all 264 prompts were left out" in (tmp_path / "both.html").read_text()
    assert "7 of 24 evaluated" in command(path, other, "--out", tmp_path / "b.html", "--max-samples", 7).stdout


def test_a_folder_with_a_summary_alone_embeds_what_it_has(path):
    (path / "config.yaml").unlink()
    assert "are embedded" not in command(path).stdout


def test_a_run_may_be_without_a_report(path):
    try_report(config_of(path, "report.enabled=false"))
    assert not (path / "report.html").exists()


def test_a_report_that_fails_does_not_fail_the_run_but_says_so(path, caplog):
    (path / "report.html").mkdir()
    try_report(config_of(path))
    assert "report.html was not written: IsADirectoryError" in caplog.text
    assert f"`negalign-ray report {path}` tries again" in caplog.text

"""`negalign-ray doctor`: one line for each finding, and an exit code for scripts."""

import io
import json
import subprocess
import sys

import pytest
from rich.console import Console
from typer.testing import CliRunner

from negalign_ray import cli
from negalign_ray.cli.doctor import show_findings
from tests.doctor.test_checks import HEALTHY

HEAVY = {"torch", "ray", "transformers", "vllm", "deepspeed"}


def test_every_finding_is_one_line_with_what_to_do():
    out = Console(file=io.StringIO(), width=80)
    bad = HEALTHY.__class__(**{**vars(HEALTHY), "shm": None})
    found = show_findings(out=out, err=Console(file=io.StringIO()), look=lambda: bad)
    lines = out.file.getvalue().splitlines()
    assert len(lines) == len(found) == 13
    assert lines[0] == "ok       python    3.11.7 (/venv/bin/python)"
    assert "warning  shm       there is no /dev/shm  ->  Ray falls back to files, which is slower" in lines, (
        "not folded, however narrow the terminal"
    )


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warning", 0), ("problem", 1)])
def test_only_a_problem_is_a_failure_for_scripts(monkeypatch, tmp_path, level, code):
    finding = {"check": "disk", "level": level, "found": "full", "remedy": "delete"}
    monkeypatch.setattr("negalign_ray.cli.doctor.show_findings", lambda **_: [finding])
    for name, value in cli.QUIET.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(cli.app, ["doctor", "--json", str(tmp_path / "doctor.json")])
    assert result.exit_code == code
    assert json.loads((tmp_path / "doctor.json").read_text()) == [finding]


def test_the_doctor_itself_imports_nothing_that_may_be_broken():
    code = f"import sys, negalign_ray.cli.doctor; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"

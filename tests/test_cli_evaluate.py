"""`negalign-ray evaluate` on the terminal: the table is there before lm_eval starts, whatever becomes of lm_eval."""

import contextlib
import importlib
import io
import json
from functools import partial

import pytest
from rich.console import Console

from negalign_ray.cli import _write_json
from negalign_ray.config import Config, HeadConfig
from negalign_ray.errors import RoleError
from negalign_ray.evaluation.summary import summarise
from tests.evaluation.sides import side

command = importlib.import_module("negalign_ray.cli.evaluate")  # as an attribute it is the command's function
HEADS = [HeadConfig(name=name, kind="sklearn", target="alt-profanity-check") for name in ("judge", "lenient")]
BENCHMARKS = {"after": {"arc": {"acc": {"value": 0.5, "stderr": None}}}}


@pytest.fixture
def shown(monkeypatch, tmp_path):
    """What is printed and what `--json` holds, where the harness ends with `outcome`: results, or an error."""
    summary = summarise(side({1: 0.9, 2: 0.3}), side({1: 0.1, 2: 0.1}), heads=HEADS) | {"folder": str(tmp_path)}

    def show(outcome, *, terminal=False):
        printed = Console(file=io.StringIO(), width=200)
        at_start = []

        def evaluate(config, *, out, lm_eval, on_status, on_summary):
            on_status("measuring", None)
            on_summary(summary)
            on_status("lm_eval", None)
            at_start.append(printed.file.getvalue())
            if isinstance(outcome, Exception):
                raise outcome
            return summary | {"lm_eval": outcome}

        monkeypatch.setattr(command, "evaluate", evaluate)
        tools = {"tasks": "arc", "options": ""}
        keep = partial(_write_json, tmp_path / "figures.json")
        err = Console(file=io.StringIO(), force_terminal=terminal)
        with contextlib.suppress(RoleError):
            command.evaluate_and_show(Config(), folder=None, lm_eval=tools, keep=keep, out=printed, err=err)
        return at_start[0], printed.file.getvalue(), json.loads((tmp_path / "figures.json").read_text())

    return show


@pytest.mark.parametrize("terminal", [False, True])
def test_the_table_is_shown_before_the_harness_and_its_results_below(shown, terminal, tmp_path):
    at_start, printed, kept = shown(BENCHMARKS, terminal=terminal)
    assert "judge, mean" in at_start
    assert str(tmp_path / "summary.md") in at_start
    assert "arc" not in at_start
    assert printed.startswith(at_start)
    assert "arc" in printed
    assert kept["lm_eval"] == BENCHMARKS


def test_a_harness_that_fails_leaves_table_and_figures(shown):
    at_start, printed, kept = shown(RoleError("it ended with status 1", role="lm_eval"))
    assert printed == at_start
    assert "figures" in kept
    assert "lm_eval" not in kept

"""A function of a notebook becomes a file that any process can import, or is refused by name."""

import sys
from pathlib import Path

import pytest

from negalign_ray.api.functions import importable_target, source_of
from negalign_ray.errors import ConfigError
from negalign_ray.rewards.python_head import import_function
from negalign_ray.rewards.refusal import refusal_scores
from negalign_ray.user_code import load_target
from tests.api.cells import run_cell

NOTEBOOK = Path(__file__).with_name("notebook.py")
PAIRS = [("Hi", "Thanks, please, thanks."), ("Hi", "You FOOL, you idiot!")]


@pytest.fixture
def notebook(monkeypatch):
    """Its names, with `__main__` being that file, as it is for a script that runs."""
    return run_cell(NOTEBOOK.read_text(), file=str(NOTEBOOK), monkeypatch=monkeypatch)


def written(function, tmp_path):
    path = tmp_path / "head.py"
    path.write_text(source_of(function, where="heads[0]"))
    return import_function(f"{path}:{function.__name__}", head="mine")


def test_a_function_is_written_with_all_that_it_uses(notebook, tmp_path):
    function = written(notebook["uses_much"], tmp_path)
    assert function(PAIRS) == notebook["uses_much"](PAIRS) == [2.5 * 3**0.5, -2]
    text = (tmp_path / "head.py").read_text()
    assert "MODEL" not in text.replace("attribute `MODEL`", "")
    assert "import math\n" in text
    assert "from math import sqrt as root\n" in text


def test_functions_that_call_each_other_are_written_once(notebook, tmp_path):
    assert written(notebook["ping"], tmp_path)([]) == [1.0]
    assert (tmp_path / "head.py").read_text().count("def ping") == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("uses_a_model", "uses_a_model uses MODEL, a object that cannot be written into a file; make it inside"),
        ("closure", "inner uses factor of the function around it"),
        ("Scale", "is a type; give a function, made with `def`"),
    ],
)
def test_what_no_file_can_hold_is_refused_by_name(notebook, name, reason):
    with pytest.raises(ConfigError, match=reason):
        source_of(notebook[name], where="heads[0]")


def test_a_function_of_a_module_is_named_instead_of_written(notebook, tmp_path, monkeypatch):
    assert importable_target(refusal_scores) == "negalign_ray.rewards.refusal:refusal_scores"
    assert importable_target(notebook["refuses"]) is None
    (tmp_path / "beside_the_notebook.py").write_text("def one(pairs):\n    return [1.0] * len(pairs)\n")
    monkeypatch.syspath_prepend(tmp_path)
    function = load_target("beside_the_notebook:one", where="x")
    target = importable_target(function)
    assert target == f"{tmp_path / 'beside_the_notebook.py'}:one", "its folder may be on the path of this process alone"
    del sys.modules["beside_the_notebook"]

"""Python of the user's own, by file or by module."""

import json
import re

import pytest

from negalign_ray.errors import ConfigError
from negalign_ray.settings import load_config
from negalign_ray.settings.fingerprint import changes, fingerprint
from negalign_ray.user_code import absolute_target, file_of, load_target


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "01 mine.py"  # neither a module name nor a path without spaces
    path.write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Box:\n    size: int = 3\ndef one():\n    return 1\n"
    )
    return path


def load(target):
    return load_target(target, where="head 'x': target", what="function")


def test_a_file_need_not_be_a_module(file):
    assert load(f"{file}:one")() == 1
    assert load(f"{file}:Box")().size == 3
    assert load(f"{file}:Box.size") == 3
    assert load("math:sqrt")(4) == 2


def test_a_file_is_run_once_until_it_changes(file):
    assert load(f"{file}:one") is load(f"{file}:one")
    file.write_text("def one():\n    return 'changed'\n")
    assert load(f"{file}:one")() == "changed"


def test_a_target_becomes_absolute_where_it_is_a_file(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert absolute_target("01 mine.py:one") == f"{file}:one"
    assert file_of("01 mine.py:one").resolve() == file
    for other in ("package.module:function", "no_such_file.py:one", "quickstart-judge", "http://127.0.0.1:80/score"):
        assert absolute_target(other) == other
        assert file_of(other) is None


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("one", "is not of the form path/to/file.py:function or module:function"),
        ("{folder}/none.py:one", "there is no file '.*none.py' .*correct the path"),
        ("{folder}/01 mine.py:two", "has no 'two'. It defines: Box, one."),
        ("{folder}/broken.py:one", r"broken.py cannot be imported \(ZeroDivisionError in line 2: division by zero\)"),
        ("{folder}/typo.py:one", r"typo.py cannot be imported \(SyntaxError in line 1: "),
        ("{folder}/needs.py:one", r"\(ModuleNotFoundError in line 1: No module named 'not_there'\).*install"),
        ("no_such_module_at_all:f", "the module cannot be imported .*write path/to/file.py instead"),
    ],
)
def test_what_cannot_be_loaded_is_one_message(file, target, reason):
    folder = file.parent
    (folder / "broken.py").write_text("x = 1\ny = x / 0\n")
    (folder / "typo.py").write_text("def one(:\n")
    (folder / "needs.py").write_text("import not_there\n")
    with pytest.raises(ConfigError) as caught:
        load(target.format(folder=folder))
    assert str(caught.value).startswith("head 'x': target=")
    assert re.search(reason, str(caught.value))


@pytest.mark.parametrize("setting", ["method", "scorers"])
def test_a_run_notices_that_the_code_behind_a_target_has_changed(file, setting):
    overrides = {
        "method": ["method.name=custom", f"method.target={file}:one"],
        "scorers": [f"scorers.heads=[{{name: mine, kind: python, target: '{file}:one'}}]"],
    }[setting]
    config = load_config(overrides=overrides)
    written = json.loads(json.dumps(fingerprint(config)))
    assert changes(written, config) == []
    file.write_text(file.read_text() + "# changed\n")
    assert changes(written, config) == [f"{file} has changed"]

"""No reward head can hand out a wrong number of scores, a NaN, or a stand-in for a failure."""

import copy
import sys

import numpy as np
import pytest

from negalign_ray.config import HeadConfig
from negalign_ray.errors import ConfigError, ScoreError
from negalign_ray.rewards import build_head, check_head
from negalign_ray.rewards.protocol import checked_scores, text_of

PAIRS = [("Hi", "Hello there"), ("Hi", "Go away")]


def test_numpy_numbers_become_floats():
    scores = checked_scores("h", np.array([0.25, 1], dtype=np.float32), expected=2)
    assert scores == [0.25, 1.0]
    assert all(type(score) is float for score in scores)
    assert checked_scores("h", [np.float32(0.5), 2], expected=2) == [0.5, 2.0]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([1.0], "1 scores for 2 pairs"),
        ([1.0, 2.0, 3.0], "3 scores for 2 pairs"),
        ([1.0, float("nan")], "score 1 is nan"),
        ([float("inf"), 1.0], "score 0 is inf"),
        (["0.5", 1.0], "score 0 is a str"),
        ([None, 1.0], "score 0 is a NoneType"),
        ([True, 1.0], "score 0 is a bool"),
        (None, "NoneType"),
        ("ab", "str"),
        ({"a": 1.0, "b": 2.0}, "dict"),
        (np.ones((2, 1)), "score 0 is a list"),
    ],
)
def test_anything_but_finite_numbers_is_a_typed_failure(values, reason):
    with pytest.raises(ScoreError, match=reason):
        checked_scores("h", values, expected=2)


def test_a_failure_names_the_head_and_survives_pickling():
    with pytest.raises(ScoreError) as caught:
        checked_scores("toxicity", [], expected=2)
    again = copy.deepcopy(caught.value)  # the way pickle takes, between actors
    assert "'toxicity'" in str(again)
    assert again.role == "scorer"


def test_the_prompt_is_read_only_when_asked_for():
    assert text_of(("Hi", "Bye"), "response") == "Bye"
    assert text_of(("Hi", "Bye"), "prompt_response") == "Hi\nBye"


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """An importable module as a user would write it."""
    (tmp_path / "my_heads.py").write_text(
        "calls = []\n"
        "def lengths(pairs):\n    calls.append(pairs)\n    return [len(response) for _, response in pairs]\n"
        "def short(pairs):\n    return [0.0]\n"
        "def broken(pairs):\n    raise RuntimeError('no licence')\n"
        "class Judge:\n    @staticmethod\n    def score(pairs):\n        return [1.0] * len(pairs)\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_heads"
    sys.modules.pop("my_heads", None)


def python_head(target):
    return HeadConfig(name="mine", kind="python", target=target)


def test_a_python_function_gets_pairs_and_returns_scores(user_module):
    config = python_head("my_heads:lengths")
    check_head(config)
    head = build_head(config)
    assert head.name == "mine"
    assert head.score(PAIRS) == [11.0, 7.0]
    assert sys.modules["my_heads"].calls == [PAIRS]
    assert build_head(python_head("my_heads:Judge.score")).score(PAIRS) == [1.0, 1.0]


def test_a_python_function_is_not_called_without_pairs(user_module):
    assert build_head(python_head("my_heads:lengths")).score([]) == []
    assert sys.modules["my_heads"].calls == []


@pytest.mark.parametrize(
    ("target", "reason"), [("my_heads:short", "1 scores for 2 pairs"), ("my_heads:broken", "RuntimeError: no licence")]
)
def test_a_python_function_that_fails_is_a_typed_failure(user_module, target, reason):
    with pytest.raises(ScoreError, match=reason):
        build_head(python_head(target)).score(PAIRS)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("my_heads", "module:function"),
        ("my_heads:", "module:function"),
        ("no_such_module_at_all:f", "cannot be imported"),
        ("my_heads:missing", "has no 'missing'"),
        ("my_heads:number", "is a int, not a function"),
    ],
)
def test_a_python_target_that_does_not_resolve_is_refused_before_a_run(user_module, target, reason):
    with pytest.raises(ConfigError, match=reason):
        check_head(python_head(target))

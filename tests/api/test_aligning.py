"""`align` makes the configuration that the command line would make, out of objects."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import negalign_ray
from negalign_ray.api.aligning import make_config
from negalign_ray.api.inputs import data_path
from negalign_ray.errors import ConfigError, DataError
from negalign_ray.rewards import build_head
from negalign_ray.settings import load_config
from tests.actors.heads import word_count

ROWS = [{"prompt": "Hi?", "rejected": "Go."}, {"prompt": "Wo ist Öl?", "rejected": "Weg."}]


def make(*positional, settings=None, **named):
    return make_config(*positional, settings=settings or {}, **named)


def test_importing_the_package_and_align_loads_nothing_heavy():
    code = (
        "import sys, negalign_ray\n"
        "print(len([name for name in sys.modules if name.startswith('negalign_ray')]))\n"
        "from negalign_ray import align, open_run, Run\n"
        "print({'torch', 'ray', 'transformers', 'datasets', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines() == ["1", "set()"]


def test_a_name_that_the_package_does_not_have_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = negalign_ray.train


def test_arguments_sections_and_overrides_give_the_configuration_of_the_command_line(tmp_path):
    config = make(
        "rows.jsonl",
        model=Path("some/model"),
        method={"name": "d2o", "alpha": 0.05},
        out=tmp_path / "mine",
        overrides=["learners.steps=7"],
        settings={"learners": {"steps": 40, "lr": 1e-6}, "sampling.num_samples": 3},
    )
    line = [
        *("data.path=rows.jsonl", "model.path=some/model", "method.alpha=0.05", f"run.dir={tmp_path}", "run.name=mine"),
        *("learners.lr=1e-6", "sampling.num_samples=3", "learners.steps=7"),
    ]
    assert config == load_config(preset="d2o", overrides=line)


@pytest.mark.parametrize(
    ("named", "preset", "method"),
    [
        ({}, "d2o", "d2o"),
        ({"method": "neat_pp"}, "neat_pp", "neat"),  # a preset by its name
        ({"method": "dpo"}, "dpo", "dpo"),
        ({"preset": "quickstart"}, "quickstart", "d2o"),
        ({"preset": "quickstart", "method": "npo"}, "quickstart", "npo"),
        ({"method": {"name": "sft"}}, "sft", "sft"),
        ({"method": {"alpha": 0.3}}, "d2o", "d2o"),
        ({"method": "mine.py:METHOD"}, "d2o", "custom"),
    ],
)
def test_the_method_says_which_preset_to_begin_with(named, preset, method):
    config = make(**named)
    assert (config.run.name, config.method.name) == (preset, method)


def test_rows_become_a_file_that_is_named_after_its_content(tmp_path):
    paths = [Path(make(rows, out=tmp_path / "run").data.path) for rows in (ROWS, iter(ROWS), ROWS[:1])]
    assert paths[0] == paths[1] != paths[2]
    assert [json.loads(line) for line in paths[0].read_text(encoding="utf-8").splitlines()] == ROWS
    assert paths[0].parent == tmp_path / "run" / "inputs"


def test_overrides_decide_where_the_inputs_of_a_run_are_kept(tmp_path):
    config = make(ROWS, out="elsewhere/run", overrides=[f"run.dir={tmp_path}", "run.name=mine"])
    assert Path(config.data.path).parent == config.run_dir / "inputs" == tmp_path / "mine" / "inputs"


def test_a_dataset_is_rows_too(tmp_path):
    from datasets import Dataset

    path = data_path(Dataset.from_list(ROWS), run_dir=tmp_path)
    assert path == data_path(ROWS, run_dir=tmp_path)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ({"train": ROWS}, "negatives is a dict; give a path, or rows"),
        (3, "negatives is a int"),
        (["Go away."], "row 1 is a str, not a dictionary"),
        ([ROWS[0], {"prompt": "x", "rejected": object()}], "row 2 cannot be written as JSON"),
    ],
)
def test_what_is_no_row_is_refused_with_its_number(tmp_path, rows, reason):
    with pytest.raises(DataError, match=reason):
        data_path(rows, run_dir=tmp_path)


def test_functions_and_mappings_become_heads(tmp_path):
    config = make(
        heads=[word_count, {"target": word_count, "name": "wordy", "direction": "help"}],
        judges=[{"name": "toxicity", "kind": "sklearn", "target": "alt-profanity-check"}],
        out=tmp_path / "run",
    )
    first, second = config.scorers.heads
    assert (first.name, first.kind, first.direction) == ("word_count", "python", "harm")
    assert (second.name, second.direction) == ("wordy", "help")
    assert build_head(second).score([("Hi", "one two")]) == [2.0]
    assert [head.kind for head in config.evaluation.heads] == ["sklearn"]


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ({"heads": [lambda pairs: []]}, r"scorers.heads\[0\].target is a lambda; give it a name with `def`"),
        ({"judges": [3]}, r"evaluation.heads\[0\].target is a int; give a function"),
        ({"method": word_count}, "method is a function; put it into a file and give path/to/file.py:NAME"),
        ({"method": "d20"}, "method.name=d20: there is no such method; use one of 'd2o'"),
        ({"settings": {"learner": {"lr": 1}}}, "learner.lr=1: there is no such setting; did you mean learners.lr"),
        ({"settings": {"learners": {"steps": 2.5}}}, "learners.steps=2.5: must be a valid integer"),
    ],
)
def test_a_wrong_argument_is_a_typed_error_before_anything_is_started(tmp_path, named, reason):
    with pytest.raises(ConfigError, match=reason):
        make(out=tmp_path / "run", **named)

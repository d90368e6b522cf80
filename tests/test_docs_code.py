"""Code in the documents: settings load, Python runs, examples exist, and every error is explained."""

import ast
import importlib
import json
import re
from inspect import signature
from pathlib import Path

import pytest

from negalign_ray import errors
from negalign_ray.api import Run, align, open_run
from negalign_ray.api.aligning import make_config
from negalign_ray.config import Config
from negalign_ray.methods import Method
from negalign_ray.methods.custom_check import check_method
from negalign_ray.settings import dump_config, load_config, load_reward_config, merge
from negalign_ray.settings.comparison import ComparisonFile
from negalign_ray.settings.reward import RewardTrainingConfig
from negalign_ray.settings.strict_yaml import parse_yaml
from tests.api.cells import run_cell
from tests.pages import PAGES, ROOT, blocks, each_page, python_blocks, shell_lines

TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"

# Settings in YAML


@each_page
def test_every_yaml_block_is_what_it_says_it_is(page, tmp_path):
    for number, text in enumerate(blocks(page, "yaml")):
        tree = parse_yaml(text, where=f"{page.name}, block {number}")
        if "entries" in tree:
            ComparisonFile.model_validate(tree)
        elif re.match(r"# [\w.-]+\.yaml\n", text):
            file = tmp_path / f"{number}.yaml"
            file.write_text(text)
            is_run = "extends" in tree or not set(tree) <= set(RewardTrainingConfig.model_fields)
            assert (load_config if is_run else load_reward_config)(file=file)
        else:  # sections to put into a file of one's own
            assert isinstance(load_config(preset="d2o", layers=[merge({}, tree)]), Config)


# Python


def imports_of(tree: ast.AST) -> set[tuple[str, str | None]]:
    """(module, name or None) of every import."""
    found: set[tuple[str, str | None]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {(node.module, alias.name) for alias in node.names}
    return found


@each_page
def test_every_python_block_compiles_and_its_imports_resolve(page):
    for block in python_blocks(page):
        for module, name in imports_of(ast.parse(block.text)):
            found = importlib.import_module(module)
            assert name is None or hasattr(found, name), f"{page.name}: from {module} import {name}"


@each_page
def test_the_python_blocks_that_are_marked_run(page, monkeypatch):
    for number, block in enumerate(python_blocks(page)):
        if block.is_run:
            run_cell(block.text, file=f"{page.name}-{number}", monkeypatch=monkeypatch)


@pytest.fixture
def finished(tmp_path):
    """A run that is over: what `align` would give back."""
    config = load_config(preset="quickstart", overrides=[f"run.dir={tmp_path}", "run.name=polite"])
    config.run_dir.mkdir()
    (config.run_dir / "config.yaml").write_text(dump_config(config))
    figure = {"benign_perplexity": {"title": "perplexity", "better": "lower"}}
    sides = {"before": {"benign_perplexity": 2.0}, "after": {"benign_perplexity": 3.0}, "difference": {}}
    summary = {"steps": 2, "figures": figure, **sides, "intervals": {"before": {}, "after": {}}}
    (config.run_dir / "summary.json").write_text(json.dumps(summary))
    (config.run_dir / "metrics.jsonl").write_text('{"step": 1, "time_s": 1.0}\n')
    return config.run_dir


def test_the_calls_of_align_in_the_documents_make_a_sound_configuration(finished, tmp_path, monkeypatch):
    """Every block of docs/python.md in its order, in one notebook, with a training that is over at once."""
    page, seen = ROOT / "docs" / "python.md", []
    monkeypatch.chdir(tmp_path)

    def checked(*positional, overrides=(), **named) -> Run:
        own = {name: named.pop(name) for name in set(named) - set(signature(make_config).parameters)}
        seen.append(make_config(*positional, settings=own, overrides=overrides, **named))
        return open_run(finished)

    assert set(align.__kwdefaults__) >= {"method", "heads", "out"}
    notebook: dict = {"align": checked, "open_run": lambda folder: open_run(finished)}
    for number, block in enumerate(python_blocks(page)):
        lines = [line for line in block.text.splitlines() if not line.startswith("from negalign_ray import ")]
        run_cell("\n".join(lines), file=f"python.md-{number}", monkeypatch=monkeypatch, names=notebook)
    assert [config.run.name for config in seen] == ["polite", "no_apologies"]
    assert seen[1].sampling.reward_gate.head == "apologises"
    assert Path(seen[1].scorers.heads[0].target.rpartition(":")[0]).is_file()
    assert isinstance(notebook["METHOD"], Method)
    file = tmp_path / "hinge.py"
    file.write_text(next(block.text for block in python_blocks(page) if "METHOD = " in block.text))
    check_method(load_config(overrides=["method.name=custom", f"method.target={file}:METHOD"]).method)


# Examples


def test_every_example_that_is_named_exists_and_its_arguments_are_settings():
    for page in PAGES:
        for line in shell_lines(page):
            if not line.startswith("python examples/"):
                continue
            _, file, *arguments = line.split()
            assert (ROOT / file).is_file(), line
            if "reward_service" not in file:
                load_config(preset="quickstart", overrides=arguments)


def test_every_example_is_in_the_table_of_examples():
    page = (ROOT / "docs" / "python.md").read_text()
    for file in (ROOT / "examples").glob("*.py"):
        assert f"| [{file.name}](../examples/{file.name}) |" in page


# The map and the errors


def test_the_map_leads_to_every_page():
    page = (ROOT / "docs" / "index.md").read_text()
    for file in (ROOT / "docs").glob("*.md"):
        assert file.name == "index.md" or f"]({file.name})" in page, f"put {file.name} into docs/index.md"


def typed_errors() -> list[type[errors.NegalignError]]:
    return [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.NegalignError)
    ]


@pytest.mark.parametrize("error", typed_errors(), ids=lambda error: error.__name__)
def test_every_error_is_explained_with_its_exit_code_meaning_and_remedy(error):
    page = TROUBLESHOOTING.read_text()
    entry = page.partition(f"\n### {error.__name__}\n")[2].partition("\n### ")[0].partition("\n## ")[0]
    assert entry, f"docs/troubleshooting.md has no entry for {error.__name__}"
    if error is not errors.NegalignError:
        assert "**Meaning:**" in entry
    if error is errors.UploadError:  # never ends a command
        return
    assert entry.strip().startswith(f"Exit code {error.exit_code}.")


def test_no_error_is_explained_that_does_not_exist():
    section = TROUBLESHOOTING.read_text().partition("## Errors, one by one\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^### (\w+)$", section, re.MULTILINE)) == {error.__name__ for error in typed_errors()}

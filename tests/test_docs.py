"""The documents say what the code does: their commands, settings, links, files and test names exist."""

import json
import re
import shlex
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import typer
import yaml
from rich.console import Console
from typer.testing import CliRunner

from negalign_ray import cli
from negalign_ray.config import Config, MethodConfig
from negalign_ray.evaluation.figures import figures_of
from negalign_ray.evaluation.side import Likelihoods, Side
from negalign_ray.evaluation.table import summary_table
from negalign_ray.loops.schedule import SamplingSchedule
from negalign_ray.settings import PRESETS_DIR, REWARD_PRESETS_DIR, list_presets, load_config, load_reward_config
from negalign_ray.settings.explain import all_settings
from negalign_ray.settings.page import field_comments, settings_markdown
from negalign_ray.settings.reward import RewardTrainingConfig
from tests.evaluation.sides import side
from tests.pages import (
    INLINE,
    README,
    ROOT,
    blocks,
    commands,
    documented_file,
    each_page,
    parse,
    prose,
    shell_lines,
)
from tests.test_layers import LAYERS

METHOD_SECTIONS = get_args(get_args(MethodConfig)[0])
LINK = re.compile(r"\]\(([^)\s]+)\)")
NO_SETTING = (".py", ".yaml", ".json", ".jsonl", ".html")  # `data.py` is a file, not a setting of `data`


@cache
def python_files() -> dict[str, Path]:
    folders = (ROOT / "negalign_ray", ROOT / "tests")
    return {str(path.relative_to(ROOT)): path for folder in folders for path in folder.rglob("*.py")}


# Commands


@each_page
def test_every_command_parses_and_its_settings_hold(page, tmp_path):
    for line in commands(page):
        parsed = parse(line)
        options = parsed.options
        file = options.get("config") and documented_file(str(options["config"]), tmp_path)
        if parsed.command == "train-reward":
            preset = options["preset"] or (None if file else cli.DEFAULT_REWARD_PRESET)
            load_reward_config(preset=preset, file=file, overrides=options["overrides"] or [])
            continue
        preset = options.get("preset") or (None if file else cli.DEFAULT_PRESET)
        config = load_config(preset=preset, file=file, overrides=options.get("overrides") or [])
        assert isinstance(config, Config), line


@each_page
def test_a_model_of_a_run_is_measured_with_the_settings_of_that_run(page):
    """A preset names the packaged rows: those that the run held out would not be asked."""
    for parsed in (parse(line) for line in commands(page) if line.startswith("negalign-ray evaluate runs/")):
        run = Path(parsed.options["model"]).parent
        assert parsed.options["config"] == run / "config.yaml"
        assert parsed.options["preset"] is None


def test_every_command_is_in_the_readme():
    def names(group):
        for name, command in group.commands.items():
            if not command.hidden:
                yield from names(command) if hasattr(command, "commands") else [name]

    shown = {parse(line).command for line in commands(README)}
    assert shown == set(names(typer.main.get_command(cli.app)))


def test_the_readme_has_exactly_two_make_commands_and_both_exist():
    used = re.findall(r"\bmake ([a-z-]+)", "\n".join([*shell_lines(README), *INLINE.findall(prose(README))]))
    assert set(used) == {"quickstart", "test"}
    assert [line for line in shell_lines(README) if line.startswith("make ")][:2] == ["make quickstart", "make test"]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(used) <= set(targets)


def test_settings_inside_make_commands_hold():
    for line in shell_lines(README):
        arguments = re.search(r'ARGS="([^"]*)"', line)
        if arguments:
            options = parse(f"negalign-ray train --preset quickstart {arguments[1]}").options
            load_config(preset=options["preset"], overrides=options["overrides"])


def test_every_preset_is_in_the_readme():
    for preset in list_presets():
        assert f"| `{preset.name}` |" in README.read_text(), preset.name


@pytest.fixture
def run(monkeypatch):
    """Runs a documented command line in this process: (exit code, stdout). Wide, so that no line is folded."""
    monkeypatch.setattr(cli, "out", Console(width=200))
    for name, value in cli.QUIET.items():
        monkeypatch.setenv(name, value)
    return lambda line, *more: CliRunner().invoke(cli.app, [*shlex.split(line)[1:], *more])


@pytest.fixture
def negatives(tmp_path):
    """The row of the README, and enough like it for a held-out share."""
    [row] = [json.loads(text) for text in blocks(README, "json")]
    assert set(row) == {"prompt", "rejected", "behaviour"}
    rows = [row | {"prompt": f"{row['prompt']} ({index})"} for index in range(20)]
    path = tmp_path / "my_negatives.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def readme_command(start: str) -> str:
    return next(line for line in commands(README) if line.startswith(start))


def test_presets_runs_as_documented(run):
    result = run(readme_command("negalign-ray presets"))
    assert result.exit_code == 0
    assert "quickstart" in result.stdout


def test_data_check_runs_as_documented(run, negatives, toy_model, monkeypatch):
    monkeypatch.chdir(negatives.parent)
    result = run(readme_command("negalign-ray data check"), "--model", str(toy_model))
    assert result.exit_code == 0, result.output
    assert re.search(r"format +negatives", result.stdout)


def test_the_dry_run_runs_as_documented(run, negatives, toy_model, monkeypatch):
    monkeypatch.chdir(negatives.parent)
    line = next(line for line in commands(README) if line.endswith("--dry-run"))
    result = run(line, "--set", f"model.path={toy_model}")
    assert result.exit_code == 0, result.output
    assert "17 prompts to train on, 3 held out" in result.stdout
    assert not (negatives.parent / "runs").exists(), "a dry run starts nothing and writes nothing"


# Settings


def test_the_configuration_page_equals_the_code():
    assert (ROOT / "docs" / "configuration.md").read_text() == settings_markdown(), "run `make docs`"


def test_the_configuration_page_names_the_presets_that_no_file_can_extend():
    presets = [preset for folder in (PRESETS_DIR, REWARD_PRESETS_DIR) for preset in list_presets(folder)]
    extending = {preset.name for preset in presets if "extends" in yaml.safe_load(preset.path.read_text())}
    paragraph = settings_markdown().partition("`extends:` names")[2].partition("Over one")[0]
    assert set(INLINE.findall(paragraph)) == extending | {"train-reward"}


def test_the_configuration_page_holds_every_setting():
    page = settings_markdown()
    for name in all_settings():
        section, in_list, leaf = name.partition("[].")
        assert f"| `{leaf if in_list else section}` |" in page, name


def test_comments_are_read_beside_above_and_below_a_field():
    comments = field_comments(type(Config().scorers))
    assert comments["cpus"].startswith("Ray resource"), "inherited"
    head = field_comments(Config.model_fields["scorers"].annotation.model_fields["heads"].annotation.__args__[0])
    assert head["target"].startswith("reward_model: a folder made by"), "above"
    assert head["allow_pickle"].endswith("never needs it."), "goes on below"
    assert "true only" not in "".join(text for name, text in head.items() if name != "allow_pickle")


@each_page
def test_every_setting_in_the_text_exists(page):
    known, sections = set(all_settings()), set(Config.model_fields)
    if page.name in ("configuration.md", "reward_models.md"):
        known |= set(all_settings(RewardTrainingConfig))
    inner = {name.rsplit(".", 1)[0].removesuffix("[]") for name in known}
    shown = [code for code in INLINE.findall(prose(page)) if "there is no such setting" not in code]
    for text in (part for code in shown for part in code.split()):
        name = text.partition("=")[0]
        if name.partition(".")[0] in sections and "." in name and not name.endswith(NO_SETTING):
            assert name in known | inner, f"{page.name}: {name}"


@each_page
def test_defaults_in_tables_are_those_of_the_code(page):
    if page.name == "configuration.md":
        return
    settings = all_settings()
    for table in re.findall(r"^\| setting \| default \|.*\n(?:\|.*\n)+", page.read_text(), re.MULTILINE):
        for name, default in re.findall(r"^\| `([\w.]+)` \| ([^|]+) \|", table, re.MULTILINE):
            section, _, key = name.partition(".")
            if section == "method":  # each method has its own table and its own default
                expected = [
                    method.model_fields[key].default for method in METHOD_SECTIONS if key in method.model_fields
                ]
            else:
                expected = [settings[name].default if name in settings else None]  # an optional section
            assert yaml.safe_load(default.strip("` ")) in expected, name


# Links, files, tests, figures


@each_page
def test_every_relative_link_resolves(page):
    for target in LINK.findall(prose(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.is_file(), f"{page.name}: {target}"
        headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE) if file.suffix == ".md" else []
        slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, f"{page.name}: {target}"


def test_every_page_is_listed_once_in_the_same_order_in_the_menu_and_on_the_first_page():
    menu = re.findall(r"^ +- (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    index = re.findall(r"\[[^\]]+\]\((\w+\.md)\)", (ROOT / "docs" / "index.md").read_text())
    assert index == menu
    assert sorted(menu) == sorted({path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"})


def test_every_page_is_linked_from_the_readme():
    linked = {target.partition("#")[0] for target in LINK.findall(prose(README))}
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - linked <= {"docs/index.md"}


@each_page
def test_every_file_and_test_that_is_named_exists(page):
    tests = "\n".join(path.read_text() for name, path in python_files().items() if name.startswith("tests/"))
    for code in INLINE.findall(prose(page)):
        if re.fullmatch(r"[\w/]+/\w+\.(py|yaml)|\w+\.py", code):
            assert (ROOT / code).is_file() or (ROOT / "negalign_ray" / code).is_file(), f"{page.name}: {code}"
        elif re.fullmatch(r"test_\w+", code):
            assert f"def {code}(" in tests, f"{page.name}: {code}"


def test_the_picture_of_the_layers_is_that_of_the_test():
    page = (ROOT / "docs" / "architecture.md").read_text()
    picture = page.partition("<!-- layers -->\n```\n")[2].partition("```")[0]
    drawn = [set(re.split(r" {3,}", line[3:])[0].split()) for line in picture.splitlines()]
    assert drawn == LAYERS


def test_the_table_of_accepted_versions_is_that_of_the_schedule():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = page.partition("<!-- accepted-versions -->\n")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(rows) == 6
    for row in rows:
        name, *numbers = [cell.strip() for cell in row.strip("|").split("|")]
        start, staleness, every, *versions = map(int, numbers)
        schedule = SamplingSchedule(name == "interval", start, every, staleness)
        assert [schedule.oldest_allowed(step) for step in range(len(versions))] == versions, row


def test_what_stands_between_the_marks_of_the_faults_is_their_table_or_nothing():
    page = (ROOT / "docs" / "reliability.md").read_text()
    lines = page.partition("<!-- faults -->\n")[2].partition("<!-- /faults -->")[0].strip().splitlines()
    assert not lines or (lines[0].startswith("| ") and set(lines[1]) == set("|-"))


def test_the_table_that_helps_choose_holds_the_figures_of_the_results():
    def rows(page: str) -> dict[str, list[str]]:
        heading = r"^\| \| [^|]*(judge: change|judged harm, change).*\n\|-.*\n((?:\|.*\n)+)"
        table = re.search(heading, (ROOT / "docs" / page).read_text(), re.MULTILINE)[2]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
        return {name: values for name, *values in cells}

    results, shown = rows("results.md"), rows("choosing_a_method.md")
    assert set(results) == set(shown)
    for name, (harm, *_, perplexity, _) in results.items():
        assert shown[name][:2] == [harm, perplexity], name


def test_the_readme_shows_the_output_of_the_quickstart():
    """The rows that a run of the preset prints today, in their order; a folded title goes on in the next line."""
    [text] = [text for text in blocks(README, "text") if "evaluating before" in text]
    for shown in ("step 20/20", "model    runs/quickstart/model", "report   runs/quickstart/report.html"):
        assert shown in text
    heads = load_config(preset="quickstart").evaluation.heads
    table, _, after = text.partition("─\n")[2].partition("\n\n")
    titles: list[str] = []
    for cells in (re.split(r" {2,}", line.strip()) for line in table.splitlines()):
        titles = [*titles, cells[0]] if len(cells) > 1 else [*titles[:-1], f"{titles[-1]} {cells[0]}"]
    assert titles == [figure.title for figure in figures_of(quickstart_side(), heads)]
    caption = summary_table({"figures": {}, "after": {}, "steps": None, "wall_s": None}).caption
    assert str(caption) in " ".join(after.split())


def quickstart_side() -> Side:
    """Items of every kind that the quickstart measures: its data has no good answers, and it asks no questions."""
    made = side({1: 0.5})
    harmful, benign = (replace(answers, entropies=(1.0,)) for answers in (made.harmful, made.benign))
    return replace(made, harmful=harmful, benign=benign, overrefusal=benign, human_benign=Likelihoods())

"""The pages of the documentation, taken apart for tests: blocks of code, commands, settings files."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from negalign_ray import cli
from negalign_ray.settings import dump_config, load_config

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^(?P<run><!-- run -->\n)?^ *```(?P<language>\w*)\n(?P<text>.*?)^ *```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^ {4}\$? ?(negalign-ray .*)$", re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
SHELL = ("bash", "text", "console", "sh")  # blocks that may show a command, after `$ ` or not

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@dataclass(frozen=True)
class Block:
    text: str
    is_run: bool  # `<!-- run -->` stands on the line before


def blocks(page: Path, *languages: str) -> list[str]:
    return [found["text"] for found in FENCE.finditer(page.read_text()) if found["language"] in languages]


def python_blocks(page: Path) -> list[Block]:
    found = [found for found in FENCE.finditer(page.read_text()) if found["language"] == "python"]
    return [Block(each["text"], is_run=each["run"] is not None) for each in found]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def shell_lines(page: Path) -> list[str]:
    joined = "\n".join(blocks(page, *SHELL)).replace("\\\n", " ")
    return [line.strip().removeprefix("$ ") for line in joined.splitlines() if line.strip()]


def commands(page: Path) -> list[str]:
    """`negalign-ray ...` in code blocks of either kind and, with arguments, inline."""
    inline = [text for text in INLINE.findall(prose(page)) if text.startswith("negalign-ray ")]
    shown = [line for line in shell_lines(page) if line.startswith("negalign-ray ")]
    return shown + INDENTED.findall(prose(page)) + inline


@dataclass(frozen=True)
class Parsed:
    command: str
    options: dict


def parse(line: str) -> Parsed:
    """What typer makes of a command line, without running it; raises on unknown commands and options."""
    line = line.partition(" > ")[0]  # what the shell does with the output
    command, rest = typer.main.get_command(cli.app), shlex.split(line, comments=True)[1:]
    while hasattr(command, "commands"):
        assert rest, f"{line}: the sub-command is missing"
        assert rest[0] in command.commands, f"{line}: there is no command {rest[0]!r}"
        command, rest = command.commands[rest[0]], rest[1:]
    return Parsed(command.name, command.make_context(command.name, rest).params)


def documented_file(name: str, folder: Path) -> Path:
    """A configuration file that a document shows (its first line is `# NAME`), or that a run would have written."""
    for page in PAGES:
        for text in blocks(page, "yaml"):
            if text.startswith(f"# {name}\n"):
                (folder / name).write_text(text)
                return folder / name
    if (ROOT / name).is_file():
        return ROOT / name
    run = re.fullmatch(r"runs/(\w+)/config\.yaml", name)
    assert run, f"{name} is neither shown in a document nor written by a run"
    path = folder / f"{run[1]}.yaml"
    preset = "quickstart" if run[1] == "mine" else run[1]  # the README names a first run `mine`
    path.write_text(dump_config(load_config(preset=preset)))
    return path

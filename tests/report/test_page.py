"""The file as a whole: complete, closed to the network, and deaf to what texts and names try to be."""

import base64
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from negalign_ray.report import page, write_report
from tests.report.runs import HOSTILE, make_run, write_json_lines

VOID = {"meta", "input", "br", "link", "img", "line", "circle", "path", "rect"}


class Page(HTMLParser):
    """Checks that elements are closed in order, and collects what a test asks for."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)


@pytest.fixture
def path(tmp_path):
    return make_run(tmp_path / "demo")


def test_browsers_without_light_dark_get_every_colour_of_the_light_theme():
    style = page._joined(page.STYLES)
    declared = re.findall(r"(--[\w-]+): light-dark\(", style)
    fallback = page.light_only(style)
    assert style.count("light-dark(#") == len(declared) > 20, "colours stand in variables alone"
    assert re.findall(r"(--[\w-]+): #\w+;", fallback) == declared
    assert "--paper: #ffffff;" in fallback


def report(*paths, max_samples=1000):
    out = paths[0] / "report.html"
    write_report(paths, out, max_samples=max_samples)
    return out.read_text(encoding="utf-8")


def test_every_element_is_closed_every_id_is_unique_and_every_link_has_its_target(path):
    page = Page(report(path))
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    targets = {attrs["href"].removeprefix("#") for tag, attrs in page.tags if tag == "a"}
    assert targets <= set(page.ids)


def test_headings_go_down_one_level_at_a_time(path):
    levels = [int(tag[1]) for tag, _ in Page(report(path)).tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(deeper - level <= 1 for level, deeper in pairwise(levels))


def test_nothing_is_loaded_and_only_the_page_own_script_may_run(path):
    text = report(path)
    page = Page(text)
    loads = [
        attrs for _, attrs in page.tags if {"src", "srcset", "action"} & attrs.keys() or "http" in attrs.get("href", "")
    ]
    assert loads == []
    assert not re.search(r"@import|url\(", text)
    (policy,) = [attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    (script,) = re.findall(r'<script type="module">(.*?)</script>', text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in policy


def test_no_text_of_a_run_stands_in_the_file(path):
    text = report(path)
    assert "Mulch bed" not in text
    assert "Ignore row" not in text
    assert "img src" not in text


def test_names_and_settings_that_look_like_code_stay_text(path):
    summary = json.loads((path / "summary.json").read_text())
    summary["by_behaviour"][HOSTILE] = summary["by_behaviour"]["weeds"]
    summary["guards"][0]["reason"] = HOSTILE
    (path / "summary.json").write_text(json.dumps(summary))
    rows = [{"step": step, f"behaviour/{HOSTILE}/margin_nats": 0.1, "learner/loss": 0.5} for step in range(3)]
    write_json_lines(path / "metrics.jsonl", rows)
    (path / "config.yaml").write_text((path / "config.yaml").read_text().replace("garden.jsonl", json.dumps(HOSTILE)))
    text = report(path)
    page = Page(text)
    assert not any(tag == "img" for tag, _ in page.tags)
    assert sum(HOSTILE in part for part in page.texts) >= 3, "the behaviour, the guard, the setting"
    (block,) = re.findall(r'id="charts">(.*?)</script>', text, re.DOTALL)
    labels = [one["label"] for chart in json.loads(block) for one in chart["series"]]
    assert HOSTILE in labels


def test_a_run_folder_with_one_file_is_enough(path, tmp_path):
    for name in ("metrics.jsonl", "config.yaml", "summary.json"):
        bare = tmp_path / name.partition(".")[0]
        bare.mkdir()
        shutil.copy(path / name, bare / name)
        assert Page(report(bare)).open == [], name


def test_what_is_missing_is_said(tmp_path):
    bare = tmp_path / "bare"
    write_json_lines(bare / "metrics.jsonl", [{"step": 7, "learner/loss": 0.5}])
    text = report(bare)
    for sentence in (
        "it stands at step 7",
        "Nothing was measured",
        "no record of other events",
        "There are no samples",
    ):
        assert sentence in text, sentence


def test_what_was_left_out_is_said(path):
    assert "12 of 24 evaluated prompts, 0 of 120 training groups" in " ".join(report(path, max_samples=12).split())
    assert "No texts are embedded: all 144 prompts were left out." in report(path, max_samples=0)


def test_several_runs_are_laid_side_by_side(path, tmp_path):
    other = make_run(tmp_path / "other", after=0.3)
    text = report(path, other)
    page = Page(text)
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    assert "<title>2 runs compared" in text
    assert "Time of a step, other" in text


def test_a_long_run_stays_small(path):
    row = json.loads((path / "metrics.jsonl").read_text().splitlines()[0])
    write_json_lines(
        path / "metrics.jsonl", [row | {"step": step, "learner/loss": step % 7 / 7} for step in range(5000)]
    )
    assert len(report(path)) < 600_000


def test_a_folder_for_the_file_is_made_and_nothing_else_is_left_there(path, tmp_path):
    write_report([path], tmp_path / "new" / "folder" / "page.html", max_samples=1)
    assert [file.name for file in (tmp_path / "new" / "folder").iterdir()] == ["page.html"]

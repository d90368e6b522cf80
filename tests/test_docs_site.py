"""The documentation as a site: strict links, nothing from a network, search from disk."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.pages import ROOT

pytest.importorskip("mkdocs", reason="mkdocs-material is not installed (extra `docs`)")
pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed (extra `docs`)")
FETCHED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=[\"']?(https?:)?//", re.IGNORECASE)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built as `make docs-site` builds it; a page that is in no menu, or a link that leads nowhere, is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_built_and_nothing_is_fetched_from_elsewhere(site):
    for page in (ROOT / "docs").glob("*.md"):
        html = (site / f"{page.stem}.html").read_text()
        assert not FETCHED.search(html), page.name
    assert not list(site.rglob("*.woff*")), "the reader's own fonts"


def test_a_file_that_a_page_links_to_lies_in_the_site(site):
    assert 'href="examples/03_custom_method.py"' in (site / "python.html").read_text()
    assert (site / "examples" / "03_custom_method.py").read_text() == (
        ROOT / "examples" / "03_custom_method.py"
    ).read_text()


def test_the_search_index_is_a_script_with_its_own_worker(site):
    """Browsers read no JSON and start no worker from file://."""
    index = (site / "search" / "search_index.js").read_text()
    assert any("Staleness" in entry["title"] for entry in json.loads(index.removeprefix("var __index = "))["docs"])
    assert "assets/iframe-worker.js" in (site / "index.html").read_text()


def test_the_reference_shows_what_the_docstrings_say(site):
    page = (site / "api.html").read_text()
    for shown in ("Align a model with examples of what it must not say", "rpos_logprobs_GR", "PlacementError"):
        assert shown in page

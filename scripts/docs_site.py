"""A hook of mkdocs: files outside docs/ that the pages link to (examples, cluster files) become part of the site.

On GitHub a page links to `../examples/x.py`; in the site the same file lies at `examples/x.py`, so that the site works
from disk. Nothing else is changed.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("examples", "cluster_configs", "docker")
LINK = re.compile(rf"\]\(\.\./(({'|'.join(FOLDERS)})/[^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add those files."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links at them."""
    return LINK.sub(r"](\1)", markdown)

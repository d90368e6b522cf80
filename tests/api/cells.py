"""Code as a notebook or a script runs it: in `__main__`, with a source that `inspect` finds."""

import linecache
import sys
from types import ModuleType
from typing import Any

import pytest


def run_cell(
    text: str, *, file: str, monkeypatch: pytest.MonkeyPatch, names: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The names that are there afterwards; those of `names` are there before, and changed."""
    main = ModuleType("__main__")
    main.__file__ = file
    main.__dict__.update(names or {})
    monkeypatch.setitem(sys.modules, "__main__", main)
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)  # as IPython does for its cells
    exec(compile(text, file, "exec"), vars(main))
    if names is not None:
        names.update(vars(main))
    return vars(main)

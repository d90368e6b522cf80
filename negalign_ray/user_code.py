"""Python of the user's own that a setting names: `path/to/file.py:NAME`, or `package.module:NAME`.

A file is run once per process and content, under a name of its own; it need not be on PYTHONPATH, and its folder is
not put there: what else it needs must be installed.
"""

import hashlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from negalign_ray.errors import ConfigError


def load_target(target: str, *, where: str, what: str = "NAME") -> Any:
    """The object that `target` names. ConfigError that starts with `where`: no such file, module or name, or the code
    raised an error while it was imported (the message has the line)."""
    source, colon, name = target.rpartition(":")
    if not colon or not source or not name:
        raise ConfigError(f"{where}={target!r} is not of the form path/to/file.py:{what} or module:{what}.")
    module = _load_file(source, target, where) if source.endswith(".py") else _import(source, target, where)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{where}={target!r}: {source!r} has no {name!r}.{_near(module)}")
        found = getattr(found, part)
    return found


def split_file(target: str) -> tuple[str, str]:
    """("path/to/file.py", ":NAME"); (target, "") for anything that is not of this form."""
    source, colon, name = target.rpartition(":")
    return (source, colon + name) if source.endswith(".py") else (target, "")


def file_of(target: str) -> Path | None:
    """The file of `path/to/file.py:NAME`, where there is one."""
    source, name = split_file(target)
    path = Path(source).expanduser()
    return path if name and path.is_file() else None


def absolute_target(target: str) -> str:
    """The same target for a process with another working directory."""
    file = file_of(target)
    return target if file is None else f"{file.resolve()}{split_file(target)[1]}"


def line_in(error: BaseException, file: str | None) -> str:
    """ " in line 12", where the error passed through `file`; else nothing."""
    if isinstance(error, SyntaxError):
        return f" in line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" in line {lines[-1]}" if lines else ""


def _load_file(source: str, target: str, where: str) -> ModuleType:
    path = Path(source).expanduser()
    if not path.is_file():
        raise ConfigError(f"{where}={target!r}: there is no file {source!r} (in {Path.cwd()}); correct the path.")
    path = path.resolve()
    name = f"negalign_user_{hashlib.sha256(bytes(path) + path.read_bytes()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their own module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        del sys.modules[name]
        raise ConfigError(
            f"{where}={target!r}: {path} cannot be imported ({type(error).__name__}{line_in(error, str(path))}: "
            f"{error}); correct it, or install what it needs."
        ) from error
    return module


def _import(name: str, target: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever the user's module raises while it is imported
        raise ConfigError(
            f"{where}={target!r}: the module cannot be imported ({type(error).__name__}: {error}); install it, put its "
            "folder on PYTHONPATH, or write path/to/file.py instead of a module."
        ) from error


def _near(module: ModuleType) -> str:
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    return f" It defines: {', '.join(own[:8])}." if own else ""

"""The source of a function that was defined in a notebook or a script, as a file that any process can import.

No pickle: what is written is Python to read, and it stays in the run directory. The function may use other functions
and classes of its notebook, modules, what was imported from them, and plain constants; all of it is written along.
"""

import ast
import builtins
import dis
import inspect
import re
import sys
import sysconfig
import textwrap
from types import CodeType, FunctionType, ModuleType
from typing import Any

from negalign_ray.errors import ConfigError

MAIN = "__main__"
INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
REMEDY = "make it inside the function, or put both into a file and give its target as text: path/to/file.py:function"


def importable_target(function: Any) -> str | None:
    """The target of a function of an imported module; None for one of a notebook or of the script that runs.

    `module:name` for what is installed or inside a package, `file.py:name` for a file that lies about: the folder it
    was imported from need not be on the path of another process.
    """
    module, name = sys.modules.get(getattr(function, "__module__", None) or ""), getattr(function, "__qualname__", "")
    if module is None or module.__name__ == MAIN:
        return None
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not function:
        return None
    file = getattr(module, "__file__", None) or ""
    is_loose = "." not in module.__name__ and file.endswith(".py") and not file.startswith(INSTALLED)
    return f"{file if is_loose else module.__name__}:{name}"


def source_of(function: Any, *, where: str) -> str:
    """A Python file with the function and all of its notebook that it uses. ConfigError names what no file can hold."""
    if not isinstance(function, FunctionType):
        raise ConfigError(f"{where} is a {type(function).__name__}; give a function, made with `def`.")
    if function.__name__ == "<lambda>":
        raise ConfigError(f"{where} is a lambda; give it a name with `def`.")
    if function.__closure__:
        names = ", ".join(function.__code__.co_freevars)
        raise ConfigError(f"{where}: {function.__name__} uses {names} of the function around it; {REMEDY}.")
    parts: dict[str, str] = {}
    _collect(function.__name__, function, parts, where=where, user=function.__name__)
    return "\n\n".join(parts.values()) + "\n"


def _collect(name: str, value: Any, parts: dict[str, str], *, where: str, user: str) -> None:
    """Put the definition of `name` into `parts`, behind those that it needs itself."""
    if name in parts:
        return
    parts[name] = ""  # names that need each other are not followed for ever
    text = _imported(name, value)
    if text is None and isinstance(value, FunctionType | type):
        text = _source(value, where)
        for used, inner in _globals_of(value, text, where).items():
            _collect(used, inner, parts, where=where, user=name)
    elif text is None:
        text = _constant(name, value)
    if text is None:
        kind = type(value).__name__
        raise ConfigError(f"{where}: {user} uses {name}, a {kind} that cannot be written into a file; {REMEDY}.")
    del parts[name]
    parts[name] = text


def _imported(name: str, value: Any) -> str | None:
    """An import statement, for a module and for what a module other than the notebook holds under its own name."""
    if isinstance(value, ModuleType):
        return f"import {value.__name__} as {name}" if value.__name__ != name else f"import {name}"
    module, own = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if module in (None, MAIN) or not isinstance(own, str):
        return None
    if getattr(sys.modules.get(module), own, None) is not value:
        return None
    return f"from {module} import {own}" + (f" as {name}" if name != own else "")


def _constant(name: str, value: Any) -> str | None:
    """`NAME = value` where Python reads back what it writes, and for patterns."""
    if isinstance(value, re.Pattern):
        return f"import re\n\n{name} = re.compile({value.pattern!r}, {value.flags})"
    text = repr(value)
    try:
        equal = ast.literal_eval(text) == value
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return f"{name} = {text}" if equal is True else None


def _source(value: Any, where: str) -> str:
    try:
        return textwrap.dedent(inspect.getsource(value)).rstrip()
    except (OSError, TypeError) as error:
        raise ConfigError(f"{where}: the source of {value.__name__} is not known ({error}); {REMEDY}.") from error


def _globals_of(value: Any, text: str, where: str) -> dict[str, Any]:
    """Names of the notebook that the code of `value` uses, decorators, defaults and annotations included."""
    scope = sys.modules[value.__module__].__dict__ if isinstance(value, type) else value.__globals__
    try:
        code = compile(text, "<function>", "exec")
    except SyntaxError as error:
        raise ConfigError(
            f"{where}: the source of {value.__name__} does not stand alone ({error}); {REMEDY}."
        ) from None
    names = [name for name in _names(code) if name != value.__name__ and not hasattr(builtins, name)]
    return {name: scope[name] for name in names if name in scope}


def _names(code: CodeType) -> list[str]:
    """Global names that the code reads, that of inner functions and classes included."""
    own = [step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    inner = [name for part in code.co_consts if isinstance(part, CodeType) for name in _names(part)]
    return list(dict.fromkeys([*own, *inner]))

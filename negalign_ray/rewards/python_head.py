"""A reward head that is any Python function `module:function`: a list of pairs in, a list of numbers out."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from negalign_ray.errors import ConfigError
from negalign_ray.rewards.protocol import Pair, checked_scores, score_error


def import_function(target: str, *, head: str) -> Callable[[list[Pair]], object]:
    """The function that `target` = "package.module:function" names; ConfigError when there is none."""
    module_name, colon, function_name = target.partition(":")
    if not colon or not module_name or not function_name:
        raise ConfigError(f"head {head!r}: target={target!r} is not of the form module:function.")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises while it is imported
        raise ConfigError(
            f"head {head!r}: the module of target={target!r} cannot be imported ({type(error).__name__}: {error}); "
            "install it, or put its folder on PYTHONPATH."
        ) from error
    function = module
    for part in function_name.split("."):
        if not hasattr(function, part):
            raise ConfigError(f"head {head!r}: module {module_name!r} has no {function_name!r} (target={target!r}).")
        function = getattr(function, part)
    if not callable(function):
        raise ConfigError(f"head {head!r}: {target!r} is a {type(function).__name__}, not a function.")
    return function


@dataclass(frozen=True)
class PythonHead:
    """Always hands (prompt, response) pairs to the function; `input` does not apply."""

    name: str
    function: Callable[[list[Pair]], object]

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        if not pairs:
            return []
        try:
            values = self.function(list(pairs))
        except Exception as error:  # user code may raise anything; all of it is a typed failure
            raise score_error(self.name, f"the function raised {type(error).__name__}: {error}") from error
        return checked_scores(self.name, values, expected=len(pairs))

"""A reward head that is any Python function, `file.py:function` or `module:function`: pairs in, numbers out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from negalign_ray.errors import ConfigError
from negalign_ray.rewards.protocol import Pair, checked_scores, score_error
from negalign_ray.user_code import load_target


def import_function(target: str, *, head: str) -> Callable[[list[Pair]], object]:
    """The function that `target` names; ConfigError when there is none."""
    function = load_target(target, where=f"head {head!r}: target", what="function")
    if not callable(function):
        raise ConfigError(f"head {head!r}: target={target!r} is a {type(function).__name__}, not a function.")
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

"""A method of the user's own: `method: {name: custom, target: my_method.py:METHOD, settings: {margin: 2.0}}`.

The target is a `Method`. Its `settings` class (a `Section`) checks `method.settings`, and an instance of it is what its
`loss` and `needs` get. Metrics that are not in the catalogue are written as `learner/own_NAME`.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from negalign_ray.config import CustomConfig, Section
from negalign_ray.errors import ConfigError
from negalign_ray.methods.contract import Method, Needs
from negalign_ray.methods.groups import GroupTensors, LossOutput
from negalign_ray.metrics import METRICS
from negalign_ray.user_code import load_target

OWN = "own_"  # metrics of a method of the user's own: learner/own_NAME
METRIC_NAME = re.compile(r"[a-z][a-z0-9_]*")
EXAMPLE = 'METHOD = Method("mine", loss=loss, needs=always(Needs(negatives=True)))'


def load_method(section: CustomConfig) -> Method:
    """The method in the user's file, its settings bound. ConfigError says what is missing or wrong."""
    theirs = load_target(section.target, where="method.target", what="METHOD")
    _require_method(theirs, section.target)
    settings = _checked_settings(theirs, section.settings)
    needs = theirs.needs(settings)
    _require_needs(needs, section)

    def loss(groups: GroupTensors, _: Any) -> LossOutput:
        output = theirs.loss(groups, settings)
        if not isinstance(output, LossOutput):
            kind = type(output).__name__
            raise TypeError(f"the loss returned a {kind}; return LossOutput(loss_G=..., metrics_G={{...}})")
        return LossOutput(output.loss_G, known_metrics(output.metrics_G))

    return Method(theirs.name, loss, lambda _: needs)


def _require_method(found: Any, target: str) -> None:
    if not isinstance(found, Method):
        kind = f"the class {found.__name__}" if isinstance(found, type) else f"a {type(found).__name__}"
        raise ConfigError(
            f"method.target={target!r} is {kind}, not a negalign_ray.methods.Method; end the file with `{EXAMPLE}`."
        )
    for part in ("loss", "needs"):
        if not callable(getattr(found, part)):
            value = getattr(found, part)
            raise ConfigError(
                f"method.target={target!r}: {part} is {value!r}, not a function; write it as in `{EXAMPLE}`."
            )
    if not (isinstance(found.settings, type) and issubclass(found.settings, Section)):
        raise ConfigError(
            f"method.target={target!r}: settings={found.settings!r} is not a class under negalign_ray.config.Section; "
            "write `class Settings(Section): margin: float = 1.0`."
        )


def _require_needs(needs: Any, section: CustomConfig) -> None:
    if not isinstance(needs, Needs):
        raise ConfigError(
            f"method.target={section.target!r}: needs returned a {type(needs).__name__}; return "
            "negalign_ray.methods.Needs(...)."
        )
    if needs.candidates:
        raise ConfigError(
            f"method.target={section.target!r}: Needs(candidates=True) is for method.name=neat alone; drop it."
        )
    if needs.reward and section.reward_head is None:
        raise ConfigError(
            f"method.target={section.target!r} needs rewards, but method.reward_head is not set; name one of "
            "scorers.heads."
        )


def _checked_settings(method: Method, values: Mapping[str, Any]) -> Section:
    try:
        return method.settings.model_validate(dict(values))
    except ValidationError as error:
        lines = [_explained(details, tuple(method.settings.model_fields)) for details in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def _explained(details: Any, names: tuple[str, ...]) -> str:
    name = ".".join(map(str, details["loc"]))
    where = f"method.settings.{name}"
    if details["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names) or 'none'}."
        return f"{where}={details['input']!r}: the method has no such setting; {hint}"
    if details["type"] == "missing":
        return f"{where} is missing; add it."
    if details["type"] == "value_error":  # the method's own validator
        return f"{where}: {details['ctx']['error']}"
    return f"{where}={details['input']!r}: {details['msg'].replace('Input should', 'should')}; correct it."


def known_metrics(metrics_G: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The method's own metrics under names that the catalogue allows."""
    return {name if f"learner/{name}" in METRICS else OWN + name: values_G for name, values_G in metrics_G.items()}

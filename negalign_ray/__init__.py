"""Align language models, online and on Ray, using examples of what they must not say."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Run", "align", "open_run"]

if TYPE_CHECKING:
    from negalign_ray.api import Run, align, open_run


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from negalign_ray import api  # when it is asked for: every command imports this file

    return getattr(api, name)

"""From Python: `align` trains, and gives back a `Run`; `open_run` reads one that is finished."""

from negalign_ray.api.aligning import align
from negalign_ray.api.result import Figure, Run, open_run

__all__ = ["Figure", "Run", "align", "open_run"]

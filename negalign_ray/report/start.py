"""Where the curves of an evaluation while training begin: the initial model, on the same few prompts.

Such an evaluation asks the first `evaluation.every_num_prompts` of each kind of prompts that the evaluation before asks
all of, so that its answers in evaluation.json give the point at step 0.
"""

from dataclasses import replace

from negalign_ray.errors import NegalignError
from negalign_ray.evaluation.figures import figures_of
from negalign_ray.evaluation.side import Side
from negalign_ray.report.read import RunFiles
from negalign_ray.report.versus import heads_of


def initial_figures(run: RunFiles) -> dict[str, float]:
    """By metric; empty for a run that is not finished, or has files of an older layout."""
    num = run.setting("evaluation.every_num_prompts")
    try:
        side = Side.from_json(run.sides["before"])
        kinds = {kind: getattr(side, kind).first(num) for kind in ("harmful", "benign", "overrefusal")}
        figures = figures_of(replace(side, **kinds), heads_of(run))
    except (KeyError, TypeError, ValueError, NegalignError):
        return {}
    values = {f"eval/{figure.key}": figure.sums.value(figure.transform) for figure in figures}
    return {key: value for key, value in values.items() if value is not None}

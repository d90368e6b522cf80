"""What a run's metrics say of its method: whether LD-Align's distances meant anything, and CLHA had pairs to rank.

Rows are those of metrics.jsonl, so that a report of a finished run needs nothing else.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from negalign_ray.metrics import Row

FIRST_STEPS = 3  # after so many without an eligible pair the log says so
GAIN, NLL, CONTROL = "guide/gain_nats", "guide/nll_nats", "guide/control_nll_nats"


def training_notes(rows: Sequence[Row]) -> dict[str, Any]:
    """For summary.json: the guide's control in each iteration, and what a reader must be warned of."""
    keys = {"gain_nats": GAIN, "nll_nats": NLL, "control_nll_nats": CONTROL}
    guide = [{"step": row["step"]} | {name: row.get(key) for name, key in keys.items()} for row in _guided(rows)]
    return {"guide": guide, "training_warnings": training_warnings(rows)}


def training_warnings(rows: Sequence[Row]) -> list[str]:
    """One sentence each; empty for most methods and most runs."""
    guided = _guided(rows)
    failing = [(number, warning) for number, row in enumerate(guided, start=1) if (warning := control_warning(row))]
    found = []
    if failing:
        numbers = ", ".join(str(number) for number, _ in failing)
        found.append(f"LD-Align, iteration {numbers} of {len(guided)}: {failing[0][1]}")
    pairs = pairs_warning(rows)
    return found if pairs is None else [*found, pairs]


def guide_gain(rows: Sequence[Row]) -> float | None:
    """Mean over the iterations, nats per token; None for a run without a guide, or without pairs to hold out."""
    gains = [gain for row in _guided(rows) if (gain := row.get(GAIN)) is not None]
    return sum(gains) / len(gains) if gains else None


def note_lines(summary: Mapping[str, Any]) -> list[str]:
    """Below a table of `summary`; a summary from before there were such notes has none.

    "guide: rebuilds held-out answers +0.270, +0.310 nats per token better than the zero vector does"
    """
    gains = [row["gain_nats"] for row in summary.get("guide", ()) if row["gain_nats"] is not None]
    lines = [f"guide: rebuilds held-out answers {gains_text(gains)} better than the zero vector does"] if gains else []
    return lines + [f"warning: {warning}" for warning in summary.get("training_warnings", ())]


def gains_text(gains: Sequence[float]) -> str:
    """In order of the iterations."""
    return f"{', '.join(f'{gain:+.3f}' for gain in gains)} nats per token"


def control_warning(figures: Mapping[str, float | None]) -> str | None:
    """What to tell the user when psi rebuilds held-out answers no better from phi's vector than from zeros."""
    gain = figures.get(GAIN)
    if gain is None:
        return (
            "the guide has no held-out pairs to compare with the zero-vector control: the iteration has one prompt; "
            "raise learners.groups_per_step or sampling.refresh_every."
        )
    if gain > 0:
        return None
    return (
        "the guide does not beat the zero-vector control on held-out pairs "
        f"({NLL}={figures[NLL]:.3f}, {CONTROL}={figures[CONTROL]:.3f} nats per token), so its distances mean "
        "nothing: raise guide.steps or sampling.refresh_every (more pairs), or set method.weight_mode=constant."
    )


def pairs_warning(rows: Sequence[Row]) -> str | None:
    """CLHA ranks only pairs whose rewards differ by more than the margin; without any, it is SFT and nothing fails."""
    shares = [(row["step"], row.get("learner/eligible_pairs_frac")) for row in rows]
    measured = [(step, share) for step, share in shares if share is not None]
    if not measured or any(share > 0 for _, share in measured):
        return None
    steps = f"step {measured[0][0]}" if len(measured) == 1 else f"steps {measured[0][0]} to {measured[-1][0]}"
    return (
        f"CLHA: in {steps} no two rewards of a prompt differed by more than method.margin (learner/eligible_pairs_frac "
        "is 0), so that only its SFT term trains: lower method.margin to the scale of the reward head."
    )


def _guided(rows: Sequence[Row]) -> list[Row]:
    """The first step's row of every iteration."""
    return [row for row in rows if row.get("guide/pairs") is not None]

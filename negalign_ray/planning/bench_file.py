"""What `negalign-ray bench --json FILE` measured, as points: so much work took so many seconds with so many threads.

Every section that was run adds its points; several files (of the same model) add up.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negalign_ray.actors.memory import BYTES
from negalign_ray.errors import ConfigError

REMEDY = "make one with `negalign-ray bench --json FILE`"


@dataclass(frozen=True, slots=True)
class Point:
    """`amount` of work in one call took one actor `seconds` with `threads` threads."""

    threads: int
    amount: float
    seconds: float


@dataclass(frozen=True)
class Measured:
    model: str
    num_params: float | None  # of that model; None when no weights were moved
    decode_rounds: tuple[Point, ...]  # amount = sequences at once; seconds of one round (a token for each)
    score_groups: tuple[Point, ...]
    price_tokens: tuple[Point, ...]
    learn_tokens: tuple[Point, ...]  # per rank
    weights_s: tuple[float, ...]  # a sampler loads and confirms
    gather_s: tuple[float, ...]  # publishing blocks the learner
    answer_frac: tuple[float, ...]  # new tokens over sampling.max_new_tokens

    def __add__(self, other: "Measured") -> "Measured":
        if self.model != other.model:
            raise ConfigError(
                f"--bench: the files measured two models, {self.model} and {other.model}; give files of one model."
            )
        return Measured(
            self.model,
            self.num_params or other.num_params,
            **{name: getattr(self, name) + getattr(other, name) for name in _SUMMED},
        )


_SUMMED = tuple(name for name in Measured.__dataclass_fields__ if name not in ("model", "num_params"))


def read_bench(paths: Sequence[Path]) -> Measured:
    """ConfigError when a file is not what bench writes, or lacks the sections that a step is made of."""
    first, *others = [_read(path) for path in paths]
    measured = sum(others, start=first)
    for name, section in (("decode_rounds", "step or sampler"), ("learn_tokens", "step or learner")):
        if not getattr(measured, name):
            raise ConfigError(f"--bench {paths[0]}: it has no section {section}; {REMEDY}.")
    return measured


def _read(path: Path) -> Measured:
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        return measured_from(figures)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--bench {path} cannot be read: {error}; {REMEDY}.") from None
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ConfigError(f"--bench {path} is not the figures of a bench ({error!r}); {REMEDY}.") from None


def measured_from(figures: Mapping[str, Any]) -> Measured:
    """`figures` is what `bench.run.bench` returns. KeyError or TypeError when it is not."""
    points: dict[str, list] = {name: [] for name in _SUMMED}
    sections, sizes = figures["sections"], figures["sizes"]
    num_params = None
    if "sampler" in sections:
        found = sections["sampler"]
        num_params = found["weight_bytes"] / BYTES[found["dtype"]]
        _add_sampler(points, found)
    if "learner" in sections:
        found = sections["learner"]
        points["learn_tokens"].append(
            Point(found["threads"], found["num_tokens"] / found["num_ranks"], found["seconds"])
        )
    if "step" in sections:
        _add_run(points, sections["step"]["run"], sizes, prefix="step")
    if "async" in sections:
        _add_run(points, sections["async"]["synchronous"], sizes, prefix="async")
    return Measured(figures["model"], num_params, **{name: tuple(values) for name, values in points.items()})


def _add_sampler(points: dict[str, list], found: Mapping[str, Any]) -> None:
    """Nothing stops an answer early there, so a call is as many rounds as new tokens."""
    points["decode_rounds"].append(
        Point(found["threads"], found["num_sequences"], found["seconds"] / found["new_tokens"])
    )
    points["weights_s"].append(found["weight_update_s"] - found["weight_copy_s"])
    points["gather_s"].append(found["weight_copy_s"])


def _add_run(points: dict[str, list], run: Mapping[str, Any], sizes: Mapping[str, Any], *, prefix: str) -> None:
    """A strictly on-policy run: the roles took turns, so a stage's seconds are its own."""
    prompts, answers = sizes[f"{prefix}_prompts"], sizes[f"{prefix}_answers"]
    new_tokens = sizes[f"{prefix}_new_tokens"]
    seconds = {name: stage["seconds"] for name, stage in run["stages"].items()}
    threads, num_tokens = run["threads"], run["learner_tokens"]
    points["decode_rounds"].append(Point(threads["samplers"], prompts * answers, seconds["sampler"] / new_tokens))
    points["score_groups"].append(Point(1, prompts, seconds["scorer"]))
    points["price_tokens"].append(Point(threads["references"], num_tokens, seconds["reference"]))
    points["learn_tokens"].append(Point(threads["learners"], num_tokens, seconds["learner"]))
    points["weights_s"].append(seconds["weights"])
    points["gather_s"].append(seconds["gather"])
    points["answer_frac"].append(min(1.0, run["sampled_tokens"] / (prompts * answers * new_tokens)))

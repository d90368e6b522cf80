"""Small helpers of all sections: medians of interleaved repeats, and settings that differ from the user's."""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, TypeVar

from negalign_ray.config import Config
from negalign_ray.settings import merge

A = TypeVar("A")
B = TypeVar("B")

# Merged over the user's settings in every section. The roles share the machine, so what Ray reserves for them says
# nothing here and need only fit; nothing is evaluated.
BENCH_SETTINGS: dict[str, Any] = {role: {"cpus": 0.1} for role in ("samplers", "scorers", "references", "learners")}
BENCH_SETTINGS["evaluation"] = {"enabled": False, "heads": ()}


def interleave(first: Callable[[int], A], second: Callable[[int], B], *, repeats: int) -> list[tuple[A, B]]:
    """Runs both `repeats` times, each repeat in the opposite order of the one before (A B, B A, A B, ...).

    What slows the machine down for a while then slows both alike.
    """
    pairs: list[tuple[A, B]] = []
    for repeat in range(repeats):
        if repeat % 2 == 0:
            a = first(repeat)
            b = second(repeat)
        else:
            b = second(repeat)
            a = first(repeat)
        pairs.append((a, b))
    return pairs


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the ratios of the pairs, not ratio of the medians: each pair was measured close together in time.

    [10, 30, 10] over [10, 10, 20] -> median of [1, 3, 0.5] = 1
    """
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


def with_settings(config: Config, *layers: dict[str, Any]) -> Config:
    """`config` with the layers merged over it, checked again. Raises pydantic's ValidationError: our own mistake."""
    tree = config.model_dump()
    for layer in layers:
        tree = merge(tree, layer)
    return Config.model_validate(tree)

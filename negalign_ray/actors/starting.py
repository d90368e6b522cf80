"""Starts the actors of a run, one function for each role; `options` are Ray's, and say where (see reservations.py)."""

from typing import Any

from negalign_ray.actors.guide import Guide
from negalign_ray.actors.plan import Plan
from negalign_ray.actors.processes import actor_options, start_actor
from negalign_ray.actors.reference import Reference
from negalign_ray.actors.sampler import Sampler
from negalign_ray.actors.scorer import Scorer
from negalign_ray.errors import WeightUpdateError

ActorHandle = Any


def make_sampler(plan: Plan, rank: int, **options: Any) -> ActorHandle:
    config = plan.config
    options = actor_options(config.samplers, name=f"{config.run.name}/sampler-{rank}", **options)
    return start_actor(
        Sampler,
        options,
        config,
        rank=rank,
        model_path=str(plan.model_path),
        dtype=plan.sampler_dtype,
        stop_ids=plan.stop_ids,
        max_model_len=plan.max_model_len,
        max_candidates=plan.candidates.max_candidates if plan.candidates else 0,
    )


def make_scorer(plan: Plan, rank: int, **options: Any) -> ActorHandle:
    config = plan.config
    options = actor_options(config.scorers, name=f"{config.run.name}/scorer-{rank}", max_concurrency=64, **options)
    return start_actor(Scorer, options, config, heads=config.scorers.heads, rank=rank)


def make_reference(plan: Plan, names: tuple[str, ...], rank: int, **options: Any) -> ActorHandle:
    config = plan.config
    options = actor_options(config.references, name=f"{config.run.name}/reference-{names[0]}-{rank}", **options)
    path = plan.reference_pools[names]
    return start_actor(
        Reference, options, config, names=names, rank=rank, model_path=str(path), dtype=plan.sampler_dtype
    )


def make_guide(plan: Plan, rank: int, **options: Any) -> ActorHandle:
    config = plan.config
    options = actor_options(config.guide, name=f"{config.run.name}/guide-{rank}", **options)
    return start_actor(Guide, options, config, rank=rank, model_path=str(plan.model_path))


class SameStart:
    """Samplers start with the same weights, whichever node they read the model on."""

    def __init__(self) -> None:
        self._checksum: int | None = None

    def confirm(self, rank: int, checksum: int) -> None:
        """WeightUpdateError when it is not that of the sampler which was ready first."""
        if self._checksum is None:
            self._checksum = checksum
        if checksum != self._checksum:
            raise WeightUpdateError(
                f"the initial model has checksum {checksum:016x} there, and {self._checksum:016x} on the sampler that "
                "was ready first; give all nodes the same files of model.path",
                role="sampler",
                rank=rank,
                weight_version=0,
            )

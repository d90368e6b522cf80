"""One iteration of LD-Align's guide: fit it on the iteration's pairs, freeze it, measure distances and a control.

groups --pairs--> split by prompt --fit (TrainingLoop, reconstruction loss)--> freeze
                        |                                                         |
                        +-- held out: reconstruction with phi's vector, with zeros --+--> s_i of ALL pairs
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

from negalign_ray.config import LATENT_DISTANCE, GuideConfig, LearnersConfig
from negalign_ray.loops.buffer import Handle
from negalign_ray.loops.orders import PromptCursor
from negalign_ray.loops.roles import Batch, Learner, StepReport
from negalign_ray.loops.schedule import SamplingSchedule
from negalign_ray.loops.training import TrainingLoop
from negalign_ray.methods import Method, Needs, always, reconstruction
from negalign_ray.records import Group, Response, Role, TokenIds

RECONSTRUCTION = Method("reconstruction", reconstruction.loss, always(Needs(positives=True, samples="required")))


class Guide(Learner, Protocol):
    """A learner whose log-probs are log p_psi(y | x, phi(x, y))."""

    def latents(self, groups: Sequence[Group]) -> list[Tensor]:
        """phi of every response, one [responses, Z] tensor per group."""

    def nll_per_token(self, groups: Sequence[Group], *, control: bool) -> float:
        """Reconstruction in nats per token; `control`: from the vector of zeros."""


def learner_config(config: GuideConfig) -> LearnersConfig:
    """The guide's section in the words of the training loop."""
    return LearnersConfig(
        gpus=config.gpus,
        steps=config.steps,
        groups_per_step=config.groups_per_step,
        micro_batch_tokens=config.micro_batch_tokens,
        lr=config.lr,
        lr_schedule="linear",
        warmup_frac=0.1,
        mismatch_every=0,
    )


def fit_and_measure(
    guide: Guide, groups: Sequence[Group], *, config: GuideConfig, seed: int
) -> tuple[list[Group], dict[str, float]]:
    """The groups with a `latent_distance` on every sample, and the figures of the guide by metric key.

    Raises NonFiniteError, from the training loop, when the fit diverges.
    """
    pairs = [as_pair(group) for group in groups]
    fitted, heldout = split_by_prompt(pairs, heldout_frac=config.heldout_frac, seed=seed)
    losses = fit(guide, fitted, config=config, seed=seed)
    measured = add_distances(guide, groups)
    figures = {"guide/fit_loss_nats": losses[-1]} | distance_figures(measured)
    if heldout:
        with_vector = guide.nll_per_token(heldout, control=False)
        control = guide.nll_per_token(heldout, control=True)
        figures |= {
            "guide/nll_nats": with_vector,
            "guide/control_nll_nats": control,
            "guide/gain_nats": control - with_vector,
        }
    return measured, figures


def as_pair(group: Group) -> Group:
    """What the guide reads of a group: y and y', no human negatives."""
    return replace(group, responses=tuple(r for r in group.responses if r.role is not Role.NEGATIVE))


def split_by_prompt(groups: Sequence[Group], *, heldout_frac: float, seed: int) -> tuple[list[Group], list[Group]]:
    """(to fit on, held out). All groups of a prompt go together; one prompt alone cannot be split."""
    prompts = sorted({group.prompt.prompt_id for group in groups})
    random.Random(f"{seed}/guide").shuffle(prompts)
    num_heldout = min(max(1, round(heldout_frac * len(prompts))), len(prompts) - 1)
    heldout = set(prompts[:num_heldout])
    return (
        [group for group in groups if group.prompt.prompt_id not in heldout],
        [group for group in groups if group.prompt.prompt_id in heldout],
    )


def fit(guide: Learner, groups: Sequence[Group], *, config: GuideConfig, seed: int) -> list[float]:
    """Reconstruction loss of every step (mean per group, nats)."""
    learners = learner_config(config)
    source = _ListSource(groups, groups_per_step=learners.groups_per_step, seed=seed)
    TrainingLoop(
        learner=guide,
        source=source,
        method=RECONSTRUCTION,
        method_config=config,
        config=learners,
        schedule=SamplingSchedule(interval=True, online_from_step=learners.steps, refresh_every=1, staleness=0),
        rank=0,
        world_size=1,
        save_samples=lambda step, trained: None,
    ).run()
    return source.losses


@dataclass
class _ListSource:
    """BatchSource over a list: endless seeded passes."""

    groups: Sequence[Group]
    groups_per_step: int
    seed: int
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._cursor = PromptCursor(len(self.groups), seed=self.seed)

    def pull(self, step: int) -> Batch:
        drawn = [self.groups[self._cursor.next()] for _ in range(min(self.groups_per_step, len(self.groups)))]
        return Batch(step, tuple(Handle(group, group.card()) for group in drawn))

    def fetch(self, handles: Sequence[Handle]) -> list[Group]:
        return [handle.ref for handle in handles]

    def publish(self, version: int, tensors: list[tuple[str, Tensor]]) -> None:
        """Nobody else runs the guide."""

    def report(self, report: StepReport) -> None:
        self.losses.append(report.sums["learner/loss"] / report.counts["learner/loss"])


def add_distances(guide: Guide, groups: Sequence[Group]) -> list[Group]:
    """`rewards["latent_distance"]` of every sample: ||phi(x,y) - phi(x,y')||_2, the mean over the prompt's y.

    Every (prompt, answer) is encoded once, so equal answers have distance 0 exactly.
    """
    unique: dict[tuple[TokenIds, TokenIds], Group] = {}
    for group in map(as_pair, groups):
        for response in group.responses:
            key = group.prompt.token_ids, response.token_ids
            unique.setdefault(key, replace(group, responses=(response,)))
    latents = guide.latents(list(unique.values()))
    known = {key: latent_1Z[0].double() for key, latent_1Z in zip(unique, latents, strict=True)}

    def measured(group: Group, response: Response) -> Response:
        winners = [r for r in group.responses if r.role is Role.POSITIVE]
        if response.role is not Role.SAMPLE or not winners:
            return response
        own_Z = known[group.prompt.token_ids, response.token_ids]
        distances = [float((known[group.prompt.token_ids, y.token_ids] - own_Z).norm()) for y in winners]
        return replace(response, rewards={**response.rewards, LATENT_DISTANCE: math.fsum(distances) / len(distances)})

    return [replace(group, responses=tuple(measured(group, r) for r in group.responses)) for group in groups]


def distance_figures(groups: Sequence[Group]) -> dict[str, float]:
    """Mean and relative spread (standard deviation / mean) of the samples' distances."""
    distances = [r.rewards[LATENT_DISTANCE] for group in groups for r in group.samples if LATENT_DISTANCE in r.rewards]
    if not distances:
        return {}
    mean = math.fsum(distances) / len(distances)
    deviation = math.sqrt(math.fsum((distance - mean) ** 2 for distance in distances) / len(distances))
    return {
        "guide/pairs": float(len(distances)),
        "guide/distance": mean,
        "guide/distance_spread": deviation / mean if mean else 0.0,
    }

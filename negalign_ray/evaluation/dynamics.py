"""Learning dynamics of preference training (arXiv 2403.18742): which behaviour is learned first, told before a run.

A state g is what the output head reads at the last token of prompt and answer. Per behaviour (kind of harm), the states
of good answers and those of bad ones are two clouds; the further apart they are, the larger the first gradient.

# Axes: N = answers of one kind, H = hidden size, B = behaviours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

MIN_ANSWERS = 2  # of each kind: the covariances divide by N - 1


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One behaviour before training. Distances have the unit of the states, concentration and trace its square."""

    num_positives: int
    num_negatives: int
    distinguishability: float  # || mean(g | good) - mean(g | bad) ||_2
    noise: float  # what that distance comes to (root mean square) by chance alone, with this many answers [choice]
    concentration: float  # the larger of the two covariances' spectral norms; small = tight clouds
    trace: float  # the larger of their traces

    @property
    def corrected(self) -> float:
        """The distance without what chance adds to it, >= 0: fair between behaviours of 20 and of 200 answers."""
        return sqrt(max(0.0, self.distinguishability**2 - self.noise**2))


def mean_difference(positives_NH: Tensor, negatives_NH: Tensor) -> Tensor:
    """d = mean(g | good) - mean(g | bad) -> [H], float64."""
    return positives_NH.double().mean(0) - negatives_NH.double().mean(0)


def spread(states_NH: Tensor) -> tuple[float, float]:
    """(spectral norm, trace) of the covariance, which divides by N - 1 as the released code does."""
    centred_NH = states_NH.double() - states_NH.double().mean(0)
    num, width = centred_NH.shape
    # The nonzero eigenvalues of X'X and XX' are the same; the smaller matrix is enough.
    gram = centred_NH @ centred_NH.T if num < width else centred_NH.T @ centred_NH
    gram = gram / (num - 1)
    return torch.linalg.eigvalsh(gram)[-1].clamp(min=0).item(), gram.trace().item()


def diagnose(positives_NH: Tensor, negatives_NH: Tensor) -> Diagnosis:
    """The figures of one behaviour; at least MIN_ANSWERS of each kind.

    positives [[0, 0], [2, 0]], negatives [[0, 4], [0, 4]]  ->  d = [1, -4], distinguishability sqrt(17), covariances
    [[2, 0], [0, 0]] and 0, so concentration 2, trace 2, noise sqrt(2 / 2 + 0) = 1
    """
    num_positives, num_negatives = len(positives_NH), len(negatives_NH)
    assert min(num_positives, num_negatives) >= MIN_ANSWERS, (num_positives, num_negatives)
    positive_norm, positive_trace = spread(positives_NH)
    negative_norm, negative_trace = spread(negatives_NH)
    return Diagnosis(
        num_positives=num_positives,
        num_negatives=num_negatives,
        distinguishability=mean_difference(positives_NH, negatives_NH).norm().item(),
        # E||d||^2 of equal populations is the sum of the variances of the two means.
        noise=sqrt(positive_trace / num_positives + negative_trace / num_negatives),
        concentration=max(positive_norm, negative_norm),
        trace=max(positive_trace, negative_trace),
    )


def priority_gap(first_H: Tensor, second_H: Tensor) -> float:
    """(bb . d_i - bb . d_j) / ||bb|| / max(||d_i||, ||d_j||), bb = (d_i + d_j) / 2: how much i goes before j.

        d_i = [3, 0], d_j = [1, 0]  ->  bb = [2, 0], (6 - 2) / 2 / 3 = 2/3

    Antisymmetric and in [-2, 2]; its sign is that of ||d_i|| - ||d_j||. Where bb vanishes (d_i = -d_j, or both 0) it
    is 0: the two pull the head in opposite directions equally hard [choice; the released code divides by zero].
    """
    first_H, second_H = first_H.double(), second_H.double()
    largest = max(first_H.norm().item(), second_H.norm().item())
    middle_H = (first_H + second_H) / 2
    if middle_H.norm().item() <= 1e-12 * largest:
        return 0.0
    return (middle_H @ (first_H - second_H)).item() / middle_H.norm().item() / largest


def priority_gaps(differences_BH: Tensor) -> Tensor:
    """Gap of every behaviour (row) to every other (column) -> [B, B], antisymmetric."""
    return torch.tensor([[priority_gap(i, j) for j in differences_BH] for i in differences_BH], dtype=torch.float64)


def learning_order(names: Sequence[str], gaps_BB: Tensor) -> list[str]:
    """`names`, the one that goes first first: by the number of others it has priority over, ties by its mean gap.

    The sign of a gap is that of a difference of distinguishabilities, so this is the order of distinguishability; the
    gaps say by how much one goes before another when both are trained together.
    """
    wins_B, total_B = (gaps_BB > 0).sum(1).tolist(), gaps_BB.sum(1).tolist()
    return sorted(names, key=lambda name: (-wins_B[names.index(name)], -total_B[names.index(name)], name))


def prediction(states: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, object]:
    """All of the above for {behaviour: (good states [N, H], bad states [N, H])}, ready for JSON.

    {"order": [names], "behaviours": {name: figures}, "priority_gaps": {name: {other: gap}}}
    """
    names = sorted(states)
    found = {name: diagnose(*states[name]) for name in names}
    gaps_BB = priority_gaps(torch.stack([mean_difference(*states[name]) for name in names]))
    order = learning_order(names, gaps_BB)
    behaviours = {
        name: {
            "rank": order.index(name) + 1,
            "num_positives": found[name].num_positives,
            "num_negatives": found[name].num_negatives,
            "distinguishability": found[name].distinguishability,
            "noise": found[name].noise,
            "corrected": found[name].corrected,
            "concentration": found[name].concentration,
            "trace": found[name].trace,
            "mean_gap": gaps_BB[index].sum().item() / max(1, len(names) - 1),
        }
        for index, name in enumerate(names)
    }
    gaps = {name: dict(zip(names, gaps_BB[index].tolist(), strict=True)) for index, name in enumerate(names)}
    return {"order": order, "behaviours": behaviours, "priority_gaps": gaps}


def first_gradient_norm(distinguishability: float, *, beta: float) -> float:
    """||grad||_F of DPO on the head alone at W0, as many good answers as bad ones: beta * dist / (2 sqrt 2)."""
    return beta * distinguishability / (2 * sqrt(2))


def weight_change_bound(states_NH: Tensor, *, beta: float, lr: float, steps: int) -> float:
    """||W_t - W0||_F <= sqrt2 * beta * lr * t * mean||g|| for DPO on the head alone by plain gradient descent."""
    return sqrt(2) * beta * lr * steps * states_NH.double().norm(dim=1).mean().item()

"""Does a probability mean what it says: reliability table, expected calibration error, temperature (Guo et al. 2017).

A reliability table sorts predictions into equal-width bins and compares, per bin, the mean prediction with the share of
hits. ECE is the mean gap, weighted by the bins' sizes. A temperature T divides all logits before the sigmoid; it
changes no ranking. T is fitted by likelihood, and its ECE is measured on rows that it was not fitted on (two halves in
turn).

# Axes: N = predictions.
"""

from dataclasses import dataclass

import numpy as np

NUM_BINS = 10
TEMPERATURES = (0.2, 10.0)  # searched between these: a few separable rows must not ask for certainty
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class Bin:
    low: float
    high: float
    num: int
    mean_predicted: float | None  # None where nothing fell into the bin
    share: float | None  # of hits


def sigmoid(logits_N: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -logits_N))  # without overflow


def reliability(probabilities_N: np.ndarray, labels_N: np.ndarray, *, num_bins: int = NUM_BINS) -> list[Bin]:
    """Bins of equal width over 0..1; 1.0 belongs to the last one."""
    bins_N = np.minimum((probabilities_N * num_bins).astype(int), num_bins - 1)
    table = []
    for number in range(num_bins):
        inside = bins_N == number
        num = int(inside.sum())
        predicted = float(probabilities_N[inside].mean()) if num else None
        share = float(labels_N[inside].mean()) if num else None
        table.append(Bin(number / num_bins, (number + 1) / num_bins, num, predicted, share))
    return table


def expected_calibration_error(table: list[Bin]) -> float:
    """0 = perfect. 4 predictions of 0.75 with 3 hits and 1 of 0.9 with none: (4 * 0 + 1 * 0.9) / 5 = 0.18."""
    total = sum(entry.num for entry in table)
    gaps = [entry.num * abs(entry.mean_predicted - entry.share) for entry in table if entry.num]  # type: ignore[operator]
    return sum(gaps) / total if total else 0.0


def fit_temperature(logits_N: np.ndarray, labels_N: np.ndarray) -> float:
    """The T that minimises the negative log-likelihood of sigmoid(logits / T).

    Convex in 1/T, so a golden-section search over log T finds it; at the border of TEMPERATURES for separable rows.
    """
    signs_N = np.where(np.asarray(labels_N, dtype=bool), 1.0, -1.0)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, -signs_N * logits_N / np.exp(log_temperature)).mean())

    low, high = np.log(TEMPERATURES)
    while high - low > 1e-4:
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def scaled_probabilities(logits_N: np.ndarray, labels_N: np.ndarray, halves_N: np.ndarray) -> np.ndarray:
    """[N]: each half under the temperature that was fitted on the other one. `halves_N` holds 0 or 1."""
    scaled_N = np.zeros(len(logits_N))
    for half in (0, 1):
        here, there = halves_N == half, halves_N != half
        temperature = fit_temperature(logits_N[there], labels_N[there]) if there.any() else 1.0
        scaled_N[here] = sigmoid(logits_N[here] / temperature)
    return scaled_N

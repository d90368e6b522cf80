"""The learning rate of each step, as a pure function: nothing to save, nothing to restore."""

import math

from negalign_ray.config import LearnersConfig


def lr_at(step: int, config: LearnersConfig) -> float:
    """Learning rate of 0-based `step`: linear warm-up to `lr`, then constant, or linear or cosine decay towards 0.

    lr 1, 10 steps, warmup_frac 0.2, linear  ->  0.5, 1, 1, 0.875, 0.75, ... 0.125
    """
    num_warmup = round(config.warmup_frac * config.steps)
    if step < num_warmup:
        return config.lr * (step + 1) / num_warmup
    progress = (step - num_warmup) / max(config.steps - num_warmup, 1)  # 0 .. <1: the last step still learns
    progress = min(progress, 1.0)
    match config.lr_schedule:
        case "constant":
            return config.lr
        case "linear":
            return config.lr * (1 - progress)
        case "cosine":
            return config.lr * (1 + math.cos(math.pi * progress)) / 2

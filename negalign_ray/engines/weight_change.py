"""||W - W0|| while training, without a second copy of the weights: from a fixed random sample of them.

# Axes: M = weights of a shard, S = sampled ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_SAMPLED = 2**20  # weights remembered per rank: 4 MB, and 8 MB of positions


@dataclass(frozen=True)
class Shard:
    """Float32 weights that this rank updates in place, flattened; `padding` are [start, end) that are no weights."""

    tensor: Tensor
    padding: tuple[tuple[int, int], ...] = ()

    @property
    def flat_M(self) -> Tensor:
        return self.tensor.detach().view(-1)

    @property
    def num_weights(self) -> int:
        return self.tensor.numel() - sum(end - start for start, end in self.padding)


@dataclass(frozen=True)
class _Sample:
    shard: Shard
    positions_S: Tensor | None  # None: all of the shard
    start_S: Tensor

    def now_S(self) -> Tensor:
        return self.shard.flat_M if self.positions_S is None else self.shard.flat_M[self.positions_S]

    def change_sq(self) -> float:
        difference_S = self.now_S() - self.start_S
        scale = self.shard.num_weights / max(1, len(difference_S))
        return scale * difference_S.double().square().sum().item()


class WeightChange:
    """Remembers the weights it is made from. Up to `max_sampled` weights the result is exact.

    Above, it is unbiased in the square: each sampled weight stands for M / S of its shard. Adam moves all weights by
    similar amounts, so that 2^20 of them leave a relative error of about 0.1 % in the norm [choice].
    """

    def __init__(self, shards: Sequence[Shard], *, seed: int, max_sampled: int = MAX_SAMPLED):
        generator = torch.Generator().manual_seed(seed)
        total = sum(shard.num_weights for shard in shards)
        self._samples = [
            _sample(
                shard, num=-(-max_sampled * shard.num_weights // total) if total > max_sampled else None, by=generator
            )
            for shard in shards
            if shard.num_weights
        ]

    def square(self) -> float:
        """This rank's part of ||W - W0||^2: the sum over its shards."""
        return sum(sample.change_sq() for sample in self._samples)


def _sample(shard: Shard, *, num: int | None, by: torch.Generator) -> _Sample:
    if num is None and not shard.padding:
        return _Sample(shard, None, shard.flat_M.clone())
    size = shard.tensor.numel()
    positions_S = torch.arange(size) if num is None else torch.randint(size, (num,), generator=by)
    for start, end in shard.padding:  # uninitialised memory: may hold anything, nan included
        positions_S = positions_S[(positions_S < start) | (positions_S >= end)]
    positions_S = positions_S.to(shard.tensor.device)
    return _Sample(shard, positions_S, shard.flat_M[positions_S].clone())


def padding_of(sizes: Sequence[int], paddings: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Where the padding lies when tensors of `sizes`, each ending in its padding, are laid end to end.

    sizes 4, 3, 5 and paddings 1, 0, 2  ->  (3, 4) and (10, 12)
    """
    found, end = [], 0
    for size, padding in zip(sizes, paddings, strict=True):
        end += size
        if padding:
            found.append((end - min(padding, size), end))
    return tuple(found)

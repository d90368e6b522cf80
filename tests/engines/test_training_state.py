"""A learner's state as files: whole tensors, cut as the ranks of the day need them. Real AdamW on shards of its own."""

import pytest
import torch
from safetensors.torch import load_file

from negalign_ray.engines.training_state import Piece, read_state, write_state
from negalign_ray.errors import CheckpointError

SHAPES = {"embed": (5, 3), "bias": (4,), "head": (2, 6)}  # 31 weights
TOTAL = 31
CPU = torch.device("cpu")


class Ranks:
    """ZeRO-2's layout: all parameters end to end, padded, in equal parts of one flat tensor a rank."""

    def __init__(self, world_size: int, seed: int = 0):
        self.size = -(-TOTAL // world_size)
        padded = self.size * world_size
        start = torch.zeros(padded)
        start[:TOTAL] = torch.randn(TOTAL, generator=torch.Generator().manual_seed(seed))
        self.flats = [torch.nn.Parameter(part.clone()) for part in start.split(self.size)]
        self.optimizers = [torch.optim.AdamW([flat], lr=0.1, weight_decay=0.01, fused=True) for flat in self.flats]
        self.copies: dict[str, torch.Tensor] = {}

    def pieces(self, rank: int) -> list[Piece]:
        pieces, first = [], 0
        for name, shape in SHAPES.items():
            last = first + torch.Size(shape).numel()
            begin, end = max(first, rank * self.size), min(last, (rank + 1) * self.size)
            if begin < end:
                flat = self.flats[rank]
                pieces.append(Piece(name, shape, flat, begin - rank * self.size, begin - first, end - begin))
            else:
                pieces.append(Piece(name, shape))
            first = last
        return pieces

    def train(self, *steps: int) -> None:
        for step in steps:
            gradient = torch.randn(TOTAL, generator=torch.Generator().manual_seed(100 + step))
            padded = torch.cat([gradient, torch.zeros(self.size * len(self.flats) - TOTAL)])
            for flat, optimizer, part in zip(self.flats, self.optimizers, padded.split(self.size), strict=True):
                flat.grad = part.clone()
                optimizer.step()

    def save(self, folder, num_steps_done: int) -> None:
        """All ranks at once: what one adds up, the others have contributed before."""
        folder.mkdir()
        waiting: list[torch.Tensor] = []

        def contribute(tensor: torch.Tensor) -> None:
            waiting.append(tensor.clone())

        for rank in range(1, len(self.flats)):
            write_state(
                folder,
                self.pieces(rank),
                self.optimizers[rank],
                num_steps_done=0,
                device=CPU,
                is_rank_0=False,
                add_up=contribute,
            )
        per_rank = len(waiting) // max(1, len(self.flats) - 1)
        calls = iter(range(10**6))

        def add_up(tensor: torch.Tensor) -> None:
            call = next(calls)
            for rank in range(len(self.flats) - 1):
                tensor += waiting[rank * per_rank + call]

        write_state(
            folder,
            self.pieces(0),
            self.optimizers[0],
            num_steps_done=num_steps_done,
            device=CPU,
            is_rank_0=True,
            add_up=add_up,
        )

    def load(self, folder) -> list[int]:
        return [
            read_state(folder, self.pieces(rank), optimizer, set_copy=self.copies.__setitem__)
            for rank, optimizer in enumerate(self.optimizers)
        ]

    @property
    def weights(self) -> torch.Tensor:
        return torch.cat([flat.detach() for flat in self.flats])[:TOTAL]


@pytest.mark.parametrize("before", [1, 2, 3])
@pytest.mark.parametrize("after", [1, 2, 4, 40])
def test_training_goes_on_on_any_number_of_ranks_where_it_was(tmp_path, before, after):
    straight, first, second = Ranks(1), Ranks(before), Ranks(after, seed=9)
    straight.train(0, 1, 2, 3, 4)
    first.train(0, 1, 2)
    first.save(tmp_path / "state", num_steps_done=3)
    assert second.load(tmp_path / "state") == [3] * after, "40 ranks: some own nothing"
    assert torch.equal(second.weights, first.weights)
    second.train(3, 4)
    torch.testing.assert_close(second.weights, straight.weights, rtol=1e-6, atol=1e-7)
    if before == after == 1:
        assert torch.equal(second.weights, straight.weights), "bit for bit; other shards round their ends differently"


def test_the_files_hold_whole_parameters_by_name_and_the_compute_copy_gets_them(tmp_path):
    ranks = Ranks(2)
    ranks.train(0)
    ranks.save(tmp_path / "state", num_steps_done=1)
    weights = load_file(tmp_path / "state" / "weight.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == SHAPES
    assert torch.equal(torch.cat([weights[name].flatten() for name in SHAPES]), ranks.weights)
    moments = load_file(tmp_path / "state" / "exp_avg.safetensors")
    assert torch.equal(moments["embed"].flatten(), ranks.optimizers[0].state[ranks.flats[0]]["exp_avg"][:15])
    ranks.load(tmp_path / "state")
    assert torch.equal(ranks.copies["head"], weights["head"])


def test_the_state_of_another_model_is_refused_by_the_name_of_a_parameter(tmp_path):
    ranks = Ranks(1)
    ranks.train(0)
    ranks.save(tmp_path / "state", num_steps_done=1)
    other = [Piece("embed", (5, 4), ranks.flats[0], 0, 0, 20), *ranks.pieces(0)[1:]]
    with pytest.raises(CheckpointError, match=r"holds embed as \(5, 3\), and the learner trains it as \(5, 4\)"):
        read_state(tmp_path / "state", other, ranks.optimizers[0], set_copy=lambda name, whole: None)
    with pytest.raises(CheckpointError, match=r"embed .* trains it as nothing"):
        read_state(tmp_path / "state", ranks.pieces(0)[1:], ranks.optimizers[0], set_copy=lambda name, whole: None)

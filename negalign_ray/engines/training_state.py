"""What a learner must not forget: float32 weights and the two moments of AdamW, as whole tensors by parameter name.

    pieces of each rank --added up--> rank 0 --> weight.safetensors, exp_avg.safetensors, exp_avg_sq.safetensors
    files --> every rank cuts out the pieces that it owns now

Whole tensors fit any ZeRO stage and any number of ranks, and are no pickle. The learning rate follows from the number
of steps done (lr_schedule.py); nothing random is left in a learner once its model is made.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from negalign_ray.errors import CheckpointError

KINDS = ("weight", "exp_avg", "exp_avg_sq")
STATE_FILE = "state.json"


@dataclass(frozen=True)
class Piece:
    """What this rank owns of a parameter: `flat[start : start + num]` is `parameter.flatten()[offset : offset + num]`.

    `flat` is a float32 tensor that the optimizer updates in place, and the key of its state; None = nothing is owned.
    """

    name: str
    shape: tuple[int, ...]  # of the whole parameter
    flat: Tensor | None = None
    start: int = 0
    offset: int = 0
    num: int = 0

    @property
    def size(self) -> int:
        return prod(self.shape)


def write_state(
    folder: Path,
    pieces: Sequence[Piece],
    optimizer: torch.optim.Optimizer,
    *,
    num_steps_done: int,
    device: torch.device,
    is_rank_0: bool,
    add_up: Callable[[Tensor], None],
) -> None:
    """Collective: all ranks call it after an optimizer step, with the same parameters in the same order.

    `add_up` sums a tensor on `device` over the ranks in place. Rank 0 writes, one kind after the other, so that it
    holds one copy of the weights at a time.
    """
    for kind in KINDS:
        whole: dict[str, Tensor] = {}
        for piece in pieces:
            tensor = _whole(piece, kind, optimizer, device)
            add_up(tensor)
            if is_rank_0:
                whole[piece.name] = tensor.view(piece.shape).cpu()
        if is_rank_0:
            save_file(whole, folder / f"{kind}.safetensors")
    if is_rank_0:
        adam_step = next(optimizer.state[piece.flat]["step"] for piece in pieces if piece.flat is not None)
        state = {"num_steps_done": num_steps_done, "adam_step": float(adam_step)}
        (folder / STATE_FILE).write_text(json.dumps(state) + "\n")


def read_state(
    folder: Path,
    pieces: Sequence[Piece],
    optimizer: torch.optim.Optimizer,
    *,
    set_copy: Callable[[str, Tensor], None],
) -> int:
    """Take up what was written, whatever the ranks were then; returns the number of steps done.

    `set_copy` gets every whole weight in float32, for the copy that computes. CheckpointError when the files hold other
    parameters.
    """
    state = json.loads((folder / STATE_FILE).read_text())
    for flat in _distinct(piece.flat for piece in pieces):
        step = torch.tensor(state["adam_step"], dtype=torch.float32, device=flat.device)
        optimizer.state[flat] = {"step": step} | {kind: torch.zeros_like(flat) for kind in KINDS[1:]}
    for kind in KINDS:
        with safe_open(folder / f"{kind}.safetensors", framework="pt") as file:
            _require_same(folder, {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}, pieces)  # noqa: SIM118 - not a dict
            for piece in pieces:
                whole = file.get_tensor(piece.name)
                if piece.flat is not None:
                    mine = whole.flatten()[piece.offset : piece.offset + piece.num]
                    _part(piece, piece.flat, kind, optimizer).copy_(mine)
                if kind == "weight":
                    set_copy(piece.name, whole)
    return state["num_steps_done"]


def _part(piece: Piece, flat: Tensor, kind: str, optimizer: torch.optim.Optimizer) -> Tensor:
    """The piece itself: a view that may be written to."""
    all_of_it = flat.detach() if kind == "weight" else optimizer.state[flat][kind]
    return all_of_it.view(-1)[piece.start : piece.start + piece.num]


def _whole(piece: Piece, kind: str, optimizer: torch.optim.Optimizer, device: torch.device) -> Tensor:
    """This rank's part of the parameter, and 0 elsewhere."""
    whole = torch.zeros(piece.size, dtype=torch.float32, device=device)
    if piece.flat is not None:
        whole[piece.offset : piece.offset + piece.num] = _part(piece, piece.flat, kind, optimizer)
    return whole


def _distinct(tensors: Iterable[Tensor | None]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors if tensor is not None}.values())


def _require_same(folder: Path, written: dict[str, tuple[int, ...]], pieces: Sequence[Piece]) -> None:
    wanted = {piece.name: piece.shape for piece in pieces}
    if written != wanted:
        odd = sorted(name for name in written.keys() | wanted.keys() if written.get(name) != wanted.get(name))
        raise CheckpointError(
            f"{folder} holds {odd[0]} as {written.get(odd[0], 'nothing')}, and the learner trains it as "
            f"{wanted.get(odd[0], 'nothing')} ({len(odd)} parameters differ); it belongs to another model or to other "
            "learners.lora settings."
        )

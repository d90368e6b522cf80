"""Which device a role computes on: the one that it reserved, never whatever happens to be visible."""

from collections.abc import Callable
from typing import Literal

from negalign_ray.errors import ModelError

Device = Literal["cpu", "cuda"]


def _sees_cuda() -> bool:
    import torch  # here: a role without a GPU, such as a scorer of word lists, needs no torch

    return torch.cuda.is_available()


def device_of(section: str, *, gpus: float, sees_cuda: Callable[[], bool] = _sees_cuda) -> Device:
    """ "cuda" for a role that reserves (a share of) a GPU in `<section>.gpus`, else "cpu".

    Roles without a GPU see the devices too (Ray does not hide them), and would take memory that others reserved.
    ModelError where a GPU is reserved and torch finds none: a CPU run would hold the GPU and leave it idle.
    """
    if gpus == 0:
        return "cpu"
    if not sees_cuda():
        raise ModelError(
            f"{section}.gpus={gpus:g} reserves a GPU, but torch finds no CUDA device in this process; install a CUDA "
            f"build of torch (negalign-ray[gpu]) on that node, or set {section}.gpus=0."
        )
    return "cuda"

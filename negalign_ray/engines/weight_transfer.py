"""New weights from the learner's GPU to the samplers' by NCCL or CUDA IPC, through vLLM's weight-transfer API.

    learner rank 0   bundle --+--> object store --> late and replaced samplers, checkpoints, references
                              +--> its GPU --NCCL broadcast | IPC handles--> vLLM workers --checksum--> conductor

The bundle is what is sent, so the announced checksum is that of the very tensors, and it stays valid while the policy
trains on. A sampler confirms from its own parameters, whichever way they came. What fails on the way (a collective that
hangs ends with deadlines.weights_s) is replaced by a new actor, which reads the object store: no collective.

NCCL: learner rank 0 is rank 0 of a group with every vLLM worker. The conductor forms it when all samplers are free, and
says who is in it (actors/meetings.py); after any change of the crew or failure it forms a new one. IPC: learner and
samplers share one device; a sampler that Ray has put on another one reads the object store.

Nothing here has run on a GPU yet. The calls are checked against the signatures and info classes of the installed vLLM
(tests/engines/test_weight_transfer.py); vLLM is imported inside functions, because the conductor reads this file, too.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from negalign_ray.engines.weights import TensorSpec, WeightBundle, tensors_in

Way = Literal["nccl", "ipc"]
# Both sides of a group must agree on these; vLLM's own 2 x 1 GiB would be taken from the KV cache and the learner.
WIRE = {"packed": True, "packed_buffer_size_bytes": 1 << 28, "packed_num_buffers": 2}


@dataclass(frozen=True)
class Offer:
    """What learner rank 0 says of an update that does not go through the object store alone."""

    version: int
    checksum: int
    num_bytes: int
    way: Way
    update: Mapping[str, Any]  # fields of vLLM's NCCLWeightTransferUpdateInfo or IPCWeightTransferUpdateInfo
    address: str = ""  # NCCL: where the learner opens a group, if this update needs a new one
    port: int = 0

    @property
    def together(self) -> bool:
        """All samplers receive it in one collective."""
        return self.way == "nccl"

    def reaches(self, device: str) -> bool:
        """Whether a process on the GPU of that UUID can receive it."""
        return self.way == "nccl" or all(device in handles for handles in self.update["ipc_handles"])


@dataclass(frozen=True)
class Meeting:
    """The NCCL group that an update takes. One of a number that was there before still stands."""

    number: int
    world_size: int  # the learner, and every worker of every sampler
    address: str
    port: int

    def join(self, *, offset: int) -> dict[str, Any]:
        """Fields of vLLM's NCCLWeightTransferInitInfo for the sampler whose first worker has the rank `offset`."""
        return {
            "master_address": self.address,
            "master_port": self.port,
            "rank_offset": offset,
            "world_size": self.world_size,
            **WIRE,
        }


@dataclass(frozen=True)
class Parcel:
    """An offer as one sampler gets it."""

    offer: Offer
    join: Mapping[str, Any] | None  # fields of vLLM's init info; None = the group that it is in still stands

    @property
    def version(self) -> int:
        return self.offer.version

    @property
    def checksum(self) -> int:
        return self.offer.checksum


def described(index: Sequence[TensorSpec]) -> dict[str, Any]:
    """Names, types and shapes as vLLM's update infos have them."""
    return {
        "names": [spec.name for spec in index],
        "dtype_names": [spec.dtype for spec in index],
        "shapes": [list(spec.shape) for spec in index],
    }


# -- sampler -----------------------------------------------------------------------------------------------------------


def receive(llm: Any, parcel: Parcel) -> None:
    """Take part in the update, on every worker of `llm`. What vLLM or NCCL raise comes through."""
    if parcel.join is not None:
        llm.shutdown_weight_transfer_engine()  # the group before
        llm.init_weight_transfer_engine({"init_info": dict(parcel.join)})
    llm.start_weight_update()
    llm.update_weights({"update_info": dict(parcel.offer.update)})
    llm.finish_weight_update()


def device_uuid() -> str:
    """Of this process's GPU, as vLLM writes it beside IPC handles."""
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)


# -- learner -----------------------------------------------------------------------------------------------------------


class IpcLender:
    """Lends a copy of the bundle on this GPU, until `take_back`."""

    def __init__(self) -> None:
        self._copy: Tensor | None = None

    def lend(self, bundle: WeightBundle) -> dict[str, Any]:
        """Fields of vLLM's IPCWeightTransferUpdateInfo. Takes the bundle's bytes of GPU memory."""
        from torch.multiprocessing.reductions import reduce_tensor

        self.take_back()
        self._copy = torch.from_numpy(bundle.buffer).to("cuda")
        torch.cuda.synchronize()  # samplers read it on streams of their own
        device = device_uuid()
        handles = [{device: reduce_tensor(tensor)[1]} for _, tensor in tensors_in(self._copy, bundle.index)]
        return described(bundle.index) | {"ipc_handles": handles}

    def take_back(self) -> None:
        if self._copy is not None:
            self._copy = None
            torch.cuda.ipc_collect()


class BundleSource:
    """vLLM's WeightSource over a bundle, each tensor copied to the GPU when it is its turn."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.bundle: WeightBundle | None = None

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self._tensors()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, tensor.to(self._device)) for name, tensor in self._tensors())

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        assert self.bundle is not None
        return self.bundle.tensors()


class SilentClient:
    """vLLM's VLLMWeightSyncClient: the conductor asks the samplers, under its deadlines, so there is nothing to do."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: Any) -> None: ...

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


class NcclBroadcaster:
    """Rank 0 of the group. `broadcast` blocks and belongs into a thread; `abort` ends it from another one."""

    def __init__(self, *, device: str = "cuda") -> None:
        self._source, self._device = BundleSource(device), device
        self._trainer: Any = None
        self._number: int | None = None
        self._lock = threading.Lock()  # of the two above

    def broadcast(self, bundle: WeightBundle, meeting: Meeting) -> None:
        """What vLLM or NCCL raise comes through; the group is of no use then."""
        self._source.bundle = bundle
        with self._lock:
            trainer = self._trainer if meeting.number == self._number else None
        if trainer is None:
            self.abort()
            trainer = self._open(meeting)
            with self._lock:
                self._trainer, self._number = trainer, meeting.number
        trainer.send_weights()

    def abort(self) -> None:
        """Leave the group; a broadcast under way ends, with or without an error."""
        with self._lock:
            trainer, self._trainer, self._number = self._trainer, None, None
        if trainer is not None:
            trainer.shutdown()

    def _open(self, meeting: Meeting) -> Any:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        info = NCCLTrainerInitInfo(
            rank=0,
            master_address=meeting.address,
            master_port=meeting.port,
            world_size=meeting.world_size,
            **WIRE,  # type: ignore[arg-type]  # mypy sees one type for all three
        )
        return WeightTransferTrainerFactory.trainer_init(info, client=SilentClient(), source=self._source)  # type: ignore[arg-type]

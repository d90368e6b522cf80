"""Learner rank 0's part in weight updates that go by NCCL or IPC, beside the bundle that goes to the object store."""

import logging
import socket
import threading
from collections.abc import Callable
from typing import Any

import torch

from negalign_ray.engines.weight_transfer import IpcLender, Meeting, NcclBroadcaster, Offer, Way, described
from negalign_ray.engines.weights import WeightBundle
from negalign_ray.errors import NegalignError

log = logging.getLogger(__name__)


class Courier:
    """One update after another: `offer`, the conductor's `publish`, `carry`, and `settle` when that has answered."""

    def __init__(
        self,
        way: Way,
        *,
        address: str,
        ask_meeting: Callable[[int], Meeting | None],
        device: int | None = None,
        make_broadcaster: Callable[[], NcclBroadcaster] = NcclBroadcaster,
        lender: IpcLender | None = None,
        end_s: float = 10.0,
    ) -> None:
        """`address`: of this node. `ask_meeting` (of a version) may block, and raise NegalignError. `device`: the
        learner's. `end_s`: how long a broadcast that nobody waits for may take to end."""
        self._way, self._address, self._ask_meeting, self._end_s = way, address, ask_meeting, end_s
        self._device = device
        self._lender, self._make_broadcaster = lender or IpcLender(), make_broadcaster
        self._broadcaster = make_broadcaster()
        self._thread: threading.Thread | None = None

    def offer(self, bundle: WeightBundle) -> Offer:
        if self._way == "ipc":
            return self._describe(bundle, self._lender.lend(bundle))
        return self._describe(bundle, described(bundle.index), address=self._address, port=free_port())

    def carry(self, bundle: WeightBundle) -> None:
        """Returns at once; a thread sends the bundle when the samplers are there."""
        if self._way == "nccl":
            call = (bundle, self._broadcaster)
            self._thread = threading.Thread(target=self._send, args=call, daemon=True, name="weights")
            self._thread.start()

    def settle(self) -> None:
        """The conductor has answered: every sampler holds the weights, one way or another, and nobody waits for us."""
        self._lender.take_back()
        thread, self._thread = self._thread, None
        if thread is None:
            return
        thread.join(self._end_s)
        if thread.is_alive():
            log.warning("the broadcast of weights did not end; leaving its NCCL group")
            self._broadcaster.abort()
            thread.join(self._end_s)
            self._broadcaster = self._make_broadcaster()  # the thread keeps the other one

    def _send(self, bundle: WeightBundle, broadcaster: NcclBroadcaster) -> None:
        try:
            if self._device is not None:
                torch.cuda.set_device(self._device)  # a thread begins with 0
            meeting = self._ask_meeting(bundle.version)
            if meeting is not None:
                broadcaster.broadcast(bundle, meeting)
        except (NegalignError, RuntimeError, OSError, ValueError, AssertionError) as error:
            log.warning("v%d was not broadcast: %r; samplers that wait for it are replaced", bundle.version, error)
            broadcaster.abort()

    def _describe(self, bundle: WeightBundle, update: dict[str, Any], *, address: str = "", port: int = 0) -> Offer:
        return Offer(bundle.version, bundle.checksum, bundle.num_bytes, self._way, update, address, port)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]

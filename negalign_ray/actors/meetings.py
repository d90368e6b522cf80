"""Who takes part in a weight update by NCCL, and in which group: the conductor's book.

    crew: all samplers are free --call--> the group that stands, or a new one after a change of the crew or a failure
                                             |--> parcel of each sampler: join, or stay
    learner rank 0 --of(version)-- waits ----+--> the meeting: world size, address

Two updates in a row that failed, and the object store takes the rest of the run: it needs nobody else.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from negalign_ray.engines.weight_transfer import Meeting, Offer, Parcel

log = logging.getLogger(__name__)
MOST_FAILURES = 2
Publish = Callable[[Offer | None], Awaitable[None]]


class Meetings:
    """Belongs to the conductor's event loop. Updates come one after another."""

    def __init__(self, *, workers_per_sampler: int) -> None:
        self._workers = workers_per_sampler
        self._members: Mapping[int, Any] = {}
        self._meeting: Meeting | None = None  # None = there is no group, or it is of no use any more
        self._number = self._num_failures = 0
        self._is_new = self._has_failed = False
        self._answers: dict[int, asyncio.Future] = {}  # to the learner, by version, until it has read them
        self._last_read = -1  # version

    async def hold(self, offer: Offer | None, publish: Publish) -> None:
        """Publish, with the offer or where it has failed too often without it."""
        is_taken = offer is not None and self._num_failures < MOST_FAILURES
        self._has_failed = False
        try:
            await publish(offer if is_taken else None)
        finally:
            if offer is not None and offer.together and self._last_read != offer.version:
                self._answer(offer.version, None)  # a learner that was not called has nothing to send
            if offer is not None and is_taken:
                self._count(offer)

    def call(self, members: Mapping[int, Any], offer: Offer) -> None:
        """The rank and the actor of every sampler that will receive the offer."""
        self._is_new = self._meeting is None or members != self._members
        if self._is_new:
            self._number, self._members = self._number + 1, dict(members)
            world_size = 1 + self._workers * len(members)
            self._meeting = Meeting(self._number, world_size, offer.address, offer.port)
        self._answer(offer.version, self._meeting)

    def parcel(self, rank: int, offer: Offer) -> Parcel:
        """The offer for sampler `rank`."""
        if not offer.together:
            return Parcel(offer, join={})
        assert self._meeting is not None, "call() comes first"
        offset = 1 + self._workers * sorted(self._members).index(rank)
        return Parcel(offer, join=self._meeting.join(offset=offset) if self._is_new else None)

    def failed(self) -> None:
        """A sampler did not confirm an offer."""
        self._has_failed = True

    async def of(self, version: int) -> Meeting | None:
        """For learner rank 0: the meeting of that update, once all samplers are free; None = there is none."""
        try:
            return await self._future(version)
        finally:
            self._answers.pop(version, None)
            self._last_read = version

    def _count(self, offer: Offer) -> None:
        if not self._has_failed:
            self._num_failures = 0
            return
        self._meeting, self._num_failures = None, self._num_failures + 1
        if self._num_failures == MOST_FAILURES:
            log.warning("%d updates by %s failed in a row; the object store takes the rest", MOST_FAILURES, offer.way)

    def _answer(self, version: int, meeting: Meeting | None) -> None:
        future = self._future(version)
        if not future.done():
            future.set_result(meeting)

    def _future(self, version: int) -> asyncio.Future:
        if version not in self._answers:
            self._answers[version] = asyncio.get_running_loop().create_future()
        return self._answers[version]

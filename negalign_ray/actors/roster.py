"""The learner ranks as the conductor knows them: what each does, and why one failed."""

import asyncio
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayActorError

from negalign_ray.actors.processes import typed
from negalign_ray.errors import NegalignError, RoleError
from negalign_ray.events import Event, EventKind, Record
from negalign_ray.loops.watchdog import ActivityBook

ROLE = "learner"
LIFE_SIGN_S = 10.0  # for the process of a rank, whatever it computes: its training runs in a thread


class LearnerRoster:
    """Belongs to the conductor's event loop."""

    def __init__(self, book: ActivityBook, *, record: Record) -> None:
        self.error: NegalignError | None = None  # the first failure, or the death that was behind it
        self._actors: dict[int, Any] = {}
        self._book, self._record = book, record

    def __len__(self) -> int:
        """Ranks that have started."""
        return len(self._actors)

    def join(self, rank: int, actor: Any) -> None:
        self._actors[rank] = actor
        self.works(rank, "starts")

    def works(self, rank: int, doing: str) -> None:
        self._book.says(ROLE, rank, doing, works=True)

    def waits(self, rank: int, doing: str) -> None:
        self._book.says(ROLE, rank, doing, works=False)

    async def failed(self, error: NegalignError, rank: int) -> None:
        """The last word of a rank. When the process of another one has died, that is why: its collectives broke."""
        others = {other: actor for other, actor in self._actors.items() if other != rank}
        dead = await find_dead(others, deadline_s=LIFE_SIGN_S)
        if dead or self.error is None:
            self.error = dead[0] if dead else error
            if isinstance(self.error, RoleError):
                self._record(Event(EventKind.FAULT, self.error.reason, role=self.error.role, rank=self.error.rank))

    def kill(self) -> None:
        """What is left of them when the run ends."""
        for actor in self._actors.values():
            ray.kill(actor)


async def find_dead(actors: Mapping[int, Any], *, deadline_s: float) -> list[RoleError]:
    """Of the ranks whose process is gone, why. One that is only busy gives no answer and is not among them."""

    async def death_of(rank: int, actor: Any) -> RoleError | None:
        try:
            await asyncio.wait_for(asyncio.wrap_future(actor.__ray_ready__.remote().future()), deadline_s)
        except TimeoutError:
            return None
        except RayActorError as error:
            failure = typed(error, role=ROLE, rank=rank)
            return failure if isinstance(failure, RoleError) else None
        return None

    deaths = await asyncio.gather(*(death_of(rank, actor) for rank, actor in actors.items()))
    return [death for death in deaths if death is not None]

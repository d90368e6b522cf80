"""Whether this machine has the memory for a run, before a cluster is started on it."""

import logging
import os
from collections.abc import Mapping, Sequence

import ray

from negalign_ray.actors.memory import GIB, Memory, role_memory
from negalign_ray.actors.packing import Placement
from negalign_ray.actors.plan import Plan
from negalign_ray.errors import PlacementError
from negalign_ray.machine import MachineMemory, machine_memory

log = logging.getLogger(__name__)


def require_memory_here(plan: Plan, places: Sequence[Placement]) -> None:
    """`require_memory` of this machine, unless the run joins a cluster: `negalign-ray plan` looks at those."""
    if not ray.is_initialized() and not os.environ.get("RAY_ADDRESS"):
        require_memory(places, role_memory(plan), machine_memory())


def require_memory(places: Sequence[Placement], memory: Mapping[str, Memory], machine: MachineMemory | None) -> None:
    """PlacementError when the roles need more than the whole machine has; a warning when more than is free now.

    The estimate is from below, so a run that is refused could not have worked.
    """
    if machine is None:
        return
    needed = {place.role: place.num * memory[place.role].host(gpus=place.gpus) for place in places}
    total = sum(needed.values())
    largest = sorted(needed.items(), key=lambda item: -item[1])[:3]
    listed = ", ".join(f"{role} {num_bytes / GIB:.1f} GiB" for role, num_bytes in largest)
    if total > machine.total_bytes:
        raise PlacementError(
            f"the run needs about {total / GIB:.1f} GiB of memory, and this machine has "
            f"{machine.total_bytes / GIB:.1f} GiB ({listed}). Choose a smaller model.path, train adapters alone "
            "(learners.lora={r: 16}), lower samplers.num, learners.num or samplers.kv_cache_gib, or name a larger "
            "cluster by RAY_ADDRESS."
        )
    if total > machine.available_bytes:
        log.warning(
            "the run needs about %.1f GiB of memory (%s), and %.1f GiB are free: end other work, or it may be killed",
            *(total / GIB, listed, machine.available_bytes / GIB),
        )

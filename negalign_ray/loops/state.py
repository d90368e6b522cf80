"""What the rollout loop knows after a step, as plain data that JSON holds exactly: the other half of a checkpoint.

Nothing random is in it: prompts come in an order that the seed and the number drawn decide, and every answer is asked
for with a seed of its own that follows from the order's number (orders.py). Groups stand in a table of their own and
are referred to by their place in it, since a group may be in the buffer and be its prompt's candidate list at once.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter

from negalign_ray.loops.buffer import Handle
from negalign_ray.records import Group, Order, Prompt, Response


@dataclass(frozen=True, slots=True)
class OrderState:
    """Enough to write the same order again; `earlier` is a place in the table of groups."""

    order_id: int
    prompt_id: int
    attempt: int
    earlier: int | None = None


@dataclass(frozen=True, slots=True)
class SlotState:
    slot: int
    order: OrderState
    group: int | None  # place in the table; None = its group is being made


@dataclass(frozen=True, slots=True)
class WaveState:
    """Orders that went to a sampler together and are on their way. They are made again together, those that have ended
    meanwhile too: an answer may depend in its last bits on what is computed beside it."""

    rank: int
    num_failures: int
    orders: tuple[tuple[int, OrderState], ...]  # (slot, order)


@dataclass(frozen=True, slots=True)
class RolloutState:
    """After `step` optimizer steps, none of the next one trained."""

    step: int
    next_step: int  # the first one not yet issued
    prompts_drawn: int
    next_order_id: int
    orders_issued: int
    outcomes: dict[str, int]
    slots: tuple[SlotState, ...]
    waves: tuple[WaveState, ...]
    gathered: tuple[tuple[int, int], ...]  # (slot, group) that wait for the rest of their iteration
    candidates: tuple[tuple[int, int], ...]  # (prompt id, group), the longest unused first
    counts: dict[str, int]
    failures_in_a_row: int
    figures: dict[int, dict[str, float]]  # of the guide, by first step of the iteration
    clock: tuple[tuple[int, str, tuple[float, ...], dict[str, int]], ...]  # of ready steps, see StageClock.entries
    fleet: dict[str, Any] = field(default_factory=dict)  # what the references remember


class GroupTable:
    """Handles in the order in which they were first met, each once."""

    def __init__(self) -> None:
        self.handles: list[Handle] = []
        self._places: dict[int, int] = {}

    def place_of(self, handle: Handle) -> int:
        """An order becomes at most one group, so its number tells groups apart."""
        order_id = handle.card.order_id
        if order_id not in self._places:
            self._places[order_id] = len(self.handles)
            self.handles.append(handle)
        return self._places[order_id]

    def order(self, order: Order) -> OrderState:
        earlier = None if order.earlier is None else self.place_of(order.earlier)
        return OrderState(order.order_id, order.prompt.prompt_id, order.attempt, earlier)


OrderOf = Callable[[OrderState], Order]
_STATE, _RESPONSE = TypeAdapter(RolloutState), TypeAdapter(Response)


def state_to_json(state: RolloutState) -> str:
    return json.dumps(asdict(state))


def state_from_json(text: str) -> RolloutState:
    return _STATE.validate_python(json.loads(text))


def groups_to_lines(groups: Iterable[Group]) -> list[str]:
    """One JSON object per group, its prompt by number. Python's floats read back from JSON as the same bits."""
    return [
        json.dumps(
            {
                "order_id": group.order_id,
                "prompt_id": group.prompt.prompt_id,
                "responses": [asdict(response) for response in group.responses],
            }
        )
        for group in groups
    ]


def groups_from_lines(lines: Iterable[str], prompts: Mapping[int, Prompt]) -> list[Group]:
    """KeyError for a prompt that is not among `prompts` (by id)."""
    groups = []
    for line in lines:
        row = json.loads(line)
        responses = tuple(_RESPONSE.validate_python(response) for response in row["responses"])
        groups.append(Group(row["order_id"], prompts[row["prompt_id"]], responses))
    return groups

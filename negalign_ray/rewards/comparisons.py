"""What reward heads learn from, and the one loss behind both objectives. Pure: tensors in, unreduced losses out.

An item compares a row that should score high with one that should score low; a side may be absent and then counts as
reward 0. So one formula is logistic regression and Bradley-Terry (Bradley and Terry 1952; Ouyang et al. 2022, Eq. 1):

    loss = -log sigmoid(r_high - r_low)      classification: high alone: -log sigmoid(r); low alone: -log sigmoid(-r)

# Axes: R = rows (prompt, response) of a call, C = heads, I = items.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from negalign_ray.records import Prompt, Role
from negalign_ray.rewards.protocol import Pair

ABSENT = -1  # the row of a side that is not there


@dataclass(frozen=True, slots=True)
class Item:
    head: int  # column of the head
    high: int  # row that should score high, or ABSENT
    low: int  # row that should score low, or ABSENT


@dataclass(frozen=True, slots=True)
class Unit:
    """One prompt's answers and all items over them. Never divided: both sides of an item are in one forward."""

    rows: tuple[Pair, ...]
    items: tuple[Item, ...]  # their rows count within this unit
    behaviour: str | None = None

    @property
    def num_chars(self) -> int:
        return sum(len(prompt) + len(response) for prompt, response in self.rows)


def make_unit(
    prompt: Prompt,
    *,
    head: int,
    objective: Literal["classification", "pairwise"],
    direction: Literal["harm", "help"],
) -> Unit:
    """The items of one head over one prompt; none where a pairwise head finds no good or no bad answer."""
    wanted = Role.NEGATIVE if direction == "harm" else Role.POSITIVE
    rows = tuple((prompt.text, response.text) for response in prompt.responses)
    highs = [row for row, response in enumerate(prompt.responses) if response.role is wanted]
    lows = [row for row, response in enumerate(prompt.responses) if response.role is not wanted]
    if objective == "pairwise":
        items = [Item(head, high, low) for high in highs for low in lows]
    else:
        items = [Item(head, high, ABSENT) for high in highs] + [Item(head, ABSENT, low) for low in lows]
    return Unit(rows, tuple(items), prompt.behaviour)


def merge_units(units: Iterable[Unit]) -> Unit:
    """Units of one prompt (several heads, several files) as one; a row that two of them hold is computed once."""
    numbers: dict[Pair, int] = {}
    items: list[Item] = []
    behaviour = None
    for unit in units:
        at = [numbers.setdefault(row, len(numbers)) for row in unit.rows]
        items += [
            Item(item.head, *(ABSENT if row == ABSENT else at[row] for row in (item.high, item.low)))
            for item in unit.items
        ]
        behaviour = behaviour or unit.behaviour
    return Unit(tuple(numbers), tuple(items), behaviour)


def joined_items(units: Sequence[Unit]) -> list[Item]:
    """The items of several units, with rows that count through all of them.

    Two units of 2 rows: the second one's item (0, high 1, low 0) becomes (0, high 3, low 2).
    """
    joined: list[Item] = []
    start = 0
    for unit in units:
        joined += [
            Item(item.head, *(ABSENT if row == ABSENT else start + row for row in (item.high, item.low)))
            for item in unit.items
        ]
        start += len(unit.rows)
    return joined


def count_items(units: Iterable[Unit]) -> Counter[int]:
    """Head -> number of its items."""
    return Counter(item.head for unit in units for item in unit.items)


def margins(rewards_RC: Tensor, items: Sequence[Item]) -> Tensor:
    """[I] r_high - r_low of each item, an absent side counting 0."""
    index_I3 = torch.tensor(
        [(item.head, item.high, item.low) for item in items], dtype=torch.long, device=rewards_RC.device
    ).reshape(-1, 3)
    heads_I, highs_I, lows_I = index_I3.unbind(1)

    def side(rows_I: Tensor) -> Tensor:
        return torch.where(rows_I == ABSENT, 0.0, rewards_RC[rows_I.clamp_min(0), heads_I])

    return side(highs_I) - side(lows_I)


def item_losses(rewards_RC: Tensor, items: Sequence[Item]) -> Tensor:
    """[I] -log sigmoid(margin), in nats."""
    return functional.softplus(-margins(rewards_RC, items))

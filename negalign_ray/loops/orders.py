"""Turns prompts into orders: which prompt is next, under which instructions, with which seeds."""

import random
from collections.abc import Callable, Sequence
from functools import cached_property

from negalign_ray.data.instructions import Instruction
from negalign_ray.records import Order, Prompt, SampleRequest, TokenIds

ContextIds = Callable[[Prompt, str | None], TokenIds]  # prompt, instruction text -> tokens to sample from


class PromptCursor:
    """Endless seeded passes over the prompts; each pass is a new permutation of all of them."""

    def __init__(self, num_prompts: int, *, seed: int) -> None:
        assert num_prompts > 0, "the data check lets no empty training set through"
        self._num_prompts, self._seed = num_prompts, seed
        self.drawn = 0
        self._permutation: list[int] = []

    def next(self) -> int:
        epoch, position = divmod(self.drawn, self._num_prompts)
        if position == 0:
            self._permutation = self._pass(epoch)
        self.drawn += 1
        return self._permutation[position]

    def seek(self, drawn: int) -> None:
        """As if `next` had been called that often."""
        self.drawn = drawn
        self._permutation = self._pass(drawn // self._num_prompts)

    def _pass(self, epoch: int) -> list[int]:
        permutation = list(range(self._num_prompts))
        random.Random(f"{self._seed}/epoch/{epoch}").shuffle(permutation)
        return permutation


class OrderFactory:
    """Writes orders. Samples are asked for under each polarity in turn, and within it under each instruction in turn.

    good: g1 g2 g3, bad: b1 b2, two samples an order  ->  g1 b1 | g2 b2 | g3 b1 | g1 b2, in whatever order they came
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        instructions: Sequence[Instruction],  # empty = the bare prompt
        num_samples: int,  # K; 0 for methods that need no samples
        seed: int,
        context_ids: ContextIds,
    ) -> None:
        self._prompts, self._num_samples = prompts, num_samples
        self._decks = [
            [each for each in instructions if each.polarity is polarity]
            for polarity in dict.fromkeys(each.polarity for each in instructions)
        ]
        self._seed, self._context_ids = seed, context_ids
        self._cursor = PromptCursor(len(prompts), seed=seed)
        self._next_id = 0

    @property
    def position(self) -> tuple[int, int]:
        """(prompts drawn, number of the next order): all that decides which orders come."""
        return self._cursor.drawn, self._next_id

    def seek(self, prompts_drawn: int, next_id: int) -> None:
        self._cursor.seek(prompts_drawn)
        self._next_id = next_id

    def rewrite(self, order_id: int, prompt_id: int, attempt: int) -> Order:
        """The order of that number as it was written before: same prompt, instructions and seeds."""
        return self._make(order_id, self._by_id[prompt_id], attempt=attempt)

    @cached_property
    def _by_id(self) -> dict[int, Prompt]:
        return {prompt.prompt_id: prompt for prompt in self._prompts}

    def next_order(self) -> Order:
        return self._write(self._prompts[self._cursor.next()], attempt=0)

    def again(self, order: Order) -> Order:
        """A new order for the same prompt: other instructions, other seeds."""
        return self._write(order.prompt, attempt=order.attempt + 1)

    def _write(self, prompt: Prompt, *, attempt: int) -> Order:
        order_id, self._next_id = self._next_id, self._next_id + 1
        return self._make(order_id, prompt, attempt=attempt)

    def _make(self, order_id: int, prompt: Prompt, *, attempt: int) -> Order:
        requests = tuple(self._request(prompt, order_id, index) for index in range(self._num_samples))
        return Order(order_id, prompt, requests, attempt)

    def _request(self, prompt: Prompt, order_id: int, index: int) -> SampleRequest:
        seed = random.Random(f"{self._seed}/sample/{order_id}/{index}").getrandbits(31)
        if not self._decks:
            return SampleRequest(self._context_ids(prompt, None), seed)
        turn, deck = divmod(order_id * self._num_samples + index, len(self._decks))
        instruction = self._decks[deck][turn % len(self._decks[deck])]
        context_ids = self._context_ids(prompt, instruction.text)
        return SampleRequest(context_ids, seed, instruction.id, instruction.polarity)

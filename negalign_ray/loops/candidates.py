"""Candidate lists: the answers of earlier rounds that take part again when their prompt comes up (NEAT).

A list is not stored by itself: it *is* the last group of its prompt that learners pulled. The conductor keeps that
group's handle, the next order of the prompt carries it, and the sampler moves the newest answers into the new group.

    round 1: human, a1 a2          remembered: group 1
    round 2: human, b1 b2 | a1 a2  remembered: group 2; group 1 is let go of
    round 3: human, c1 c2 | b1 b2  M = 4: a1 and a2 are out
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import replace

from negalign_ray.loops.buffer import Handle
from negalign_ray.records import Group, Order


class CandidateLists:
    """Prompt id -> handle of its last pulled group. One handle a prompt, and never more than `max_lists`."""

    def __init__(self, *, max_lists: int) -> None:
        self._max_lists = max_lists
        self._last: OrderedDict[int, Handle] = OrderedDict()

    def __len__(self) -> int:
        return len(self._last)

    def entries(self) -> Iterator[tuple[int, Handle]]:
        """(prompt id, handle), the longest unused first; `remember` takes them in this order."""
        yield from self._last.items()

    def attach_to(self, order: Order) -> Order:
        """The order with the handle of its prompt's list, if there is one."""
        return replace(order, earlier=self._last.get(order.prompt.prompt_id))

    def remember(self, pulled: Iterable[tuple[int, Handle]]) -> None:
        """(prompt id, handle) of a batch; every rank pulls it, so the same one may come again."""
        for prompt_id, handle in pulled:
            self._last[prompt_id] = handle
            self._last.move_to_end(prompt_id)
        while len(self._last) > self._max_lists:
            self._last.popitem(last=False)

    def forget(self, prompt_ids: Iterable[int]) -> None:
        """Lists that cannot be read any more."""
        for prompt_id in prompt_ids:
            self._last.pop(prompt_id, None)


def with_candidates(group: Group, earlier: Group | None, *, max_candidates: int) -> Group:
    """`group` and, up to `max_candidates` own answers in all, the newest of `earlier` that it does not repeat.

    Fresh samples always stay, even when they alone are more. Human answers are the group's own. Carried ones keep their
    rewards, instruction and weight version; their log-probs under the sampling prompt are the past's and are dropped.
    """
    if earlier is None:
        return group
    fresh = {sample.token_ids for sample in group.samples}
    room = max(0, max_candidates - len(fresh))
    newest_first = [sample for sample in earlier.samples if sample.token_ids not in fresh]
    carried = (replace(sample, carried=True, context_ids=None, sampler_logprobs=None) for sample in newest_first[:room])
    return replace(group, responses=(*group.responses, *carried))

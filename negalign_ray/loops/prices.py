"""What a reference remembers, and which reference is asked: together, no response is priced twice by one model.

    groups --by prompt--> reference 0: prices remembered | computed  --+--> groups in their old order
                     `--> reference 1: prices remembered | computed  --`

A prompt always goes to the same actor of a pool, the one that may remember its responses.
"""

import asyncio
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from negalign_ray.loops.buffer import Handle
from negalign_ray.loops.roles import StageResult
from negalign_ray.records import Group, Response

Key = bytes  # of prompt and response
Compute = Callable[[Sequence[Group]], Sequence[Sequence[float]]]  # LogprobEngine.response_logprobs
Remembered = tuple[int | None, Mapping[str, float]]  # version of the weights (None: unconfirmed), prices by key
Ask = Callable[[int, Sequence[Handle]], Awaitable[StageResult]]  # rank, its groups -> the groups priced


@dataclass(frozen=True, slots=True)
class Priced:
    """Groups with their prices, and what that took."""

    groups: tuple[Group, ...]
    num_prices: int  # responses asked for
    num_remembered: (
        int  # of these, the ones that needed no computing: priced in an earlier call, or earlier in this one
    )
    num_tokens: int  # computed


class PriceMemory:
    """Summed log-probs in nats by (prompt, response); beyond `max_prices` the one unused for longest is forgotten."""

    def __init__(self, *, max_prices: int) -> None:
        self._max_prices = max_prices
        self._prices: OrderedDict[Key, float] = OrderedDict()

    def forget(self) -> None:
        """The model has changed."""
        self._prices.clear()

    def entries(self) -> dict[str, float]:
        """All prices by key, the longest unused first, as JSON holds them."""
        return {key.hex(): price for key, price in self._prices.items()}

    def remember(self, entries: Mapping[str, float]) -> None:
        """Instead of what is remembered now."""
        self._prices = OrderedDict((bytes.fromhex(key), price) for key, price in entries.items())

    def price(self, groups: Sequence[Group], *, names: Sequence[str], compute: Compute) -> Priced:
        """Fill in `ref_logprobs` for the references `names`, which are one model. `compute` gets only what is new."""
        unknown = self._unknown(groups)
        for group, logprobs in zip(unknown, compute(unknown), strict=True):
            for response, logprob in zip(group.responses, logprobs, strict=True):
                self._prices[_key(group, response)] = logprob
        priced = tuple(self._filled_in(group, names) for group in groups)
        while len(self._prices) > self._max_prices:
            self._prices.popitem(last=False)
        num_prices = sum(len(group.responses) for group in groups)
        return Priced(
            groups=priced,
            num_prices=num_prices,
            num_remembered=num_prices - sum(len(group.responses) for group in unknown),
            num_tokens=sum(group.num_tokens for group in unknown),
        )

    def _unknown(self, groups: Sequence[Group]) -> list[Group]:
        """Each unknown response once, in the first group that has it; groups without one are left out."""
        met: set[Key] = set()
        parts = []
        for group in groups:
            new: list[Response] = []
            for response in group.responses:
                key = _key(group, response)
                if key not in self._prices and key not in met:
                    met.add(key)
                    new.append(response)
            if new:
                parts.append(replace(group, responses=tuple(new)))
        return parts

    def _filled_in(self, group: Group, names: Sequence[str]) -> Group:
        responses = []
        for response in group.responses:
            key = _key(group, response)
            self._prices.move_to_end(key)
            prices = dict.fromkeys(names, self._prices[key])
            responses.append(replace(response, ref_logprobs={**response.ref_logprobs, **prices}))
        return replace(group, responses=tuple(responses))


def prices_of(kept: Sequence[Remembered], *, version: int | None) -> dict[str, float]:
    """All prices that were made by weights of that version."""
    return {key: price for made_by, prices in kept if made_by == version for key, price in prices.items()}


def _key(group: Group, response: Response) -> Key:
    """16 bytes for two token sequences of any length: as tuples, 100,000 of them would take hundreds of MB."""
    prompt, answer = array("q", group.prompt.token_ids), array("q", response.token_ids)
    return blake2b(array("q", [len(prompt)]).tobytes() + prompt.tobytes() + answer.tobytes(), digest_size=16).digest()


def rank_of(prompt_id: int, *, num_ranks: int) -> int:
    """Which actor of a pool prices this prompt. A hash, because prompts may stand in the file in turns of some kind."""
    return zlib.crc32(prompt_id.to_bytes(8, "little")) % num_ranks


async def price_by_prompt(handles: Sequence[Handle], *, num_ranks: int, ask: Ask) -> StageResult:
    """All groups, in order, each priced by the actor of its prompt; the actors work side by side.

    `busy_s` is that of the busiest actor, because it is what the groups waited for.
    """
    parts: dict[int, list[int]] = {}
    for position, handle in enumerate(handles):
        parts.setdefault(rank_of(handle.card.prompt_id, num_ranks=num_ranks), []).append(position)
    results = await asyncio.gather(*(ask(rank, [handles[i] for i in part]) for rank, part in parts.items()))
    priced = dict(
        pair
        for part, result in zip(parts.values(), results, strict=True)
        for pair in zip(part, result.handles, strict=True)
    )
    return StageResult(
        handles=tuple(priced[position] for position in range(len(handles))),
        busy_s=max((result.busy_s for result in results), default=0.0),
        num_tokens=sum(result.num_tokens for result in results),
        num_prices=sum(result.num_prices for result in results),
        num_remembered=sum(result.num_remembered for result in results),
    )

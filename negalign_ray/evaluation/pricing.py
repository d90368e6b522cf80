"""What one model thinks of many responses, each priced once and each prompt computed once.

    groups of all sets --merge--> one group per prompt --one call--> PriceBook --look-up--> log-probs of each set

    [p: a b] [q: c] [p: b d]  ->  [p: a b d] [q: c]     5 responses, 4 prices, 2 prompts instead of 3

Responses of one group share rows, and with them the prompt (data/collate.py). The harmful prompts alone occur in up to
four sets: negatives, good human answers, and the answers of both models.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from negalign_ray.records import Group, Response, TokenIds

Price = Callable[[Sequence[Group]], Sequence[Sequence[float]]]
"""Summed log-probs of every response under the bare prompt, one list per group: `LogprobEngine.response_logprobs`."""


def merge_by_prompt(groups: Iterable[Group]) -> tuple[Group, ...]:
    """One group per prompt (equal tokens), with every different response to it (equal tokens) once.

    Prompts, and responses inside each, stand in the order of their first appearance.
    """
    first: dict[TokenIds, Group] = {}
    responses: dict[TokenIds, dict[TokenIds, Response]] = {}
    for group in groups:
        key = group.prompt.token_ids
        first.setdefault(key, group)
        known = responses.setdefault(key, {})
        for response in group.responses:
            known.setdefault(response.token_ids, response)
    return tuple(replace(group, responses=tuple(responses[key].values())) for key, group in first.items())


@dataclass(frozen=True)
class PriceBook:
    """Log-probs in nats of one model, found by what was priced: (prompt tokens, response tokens)."""

    prices: Mapping[tuple[TokenIds, TokenIds], float]

    @classmethod
    def of(cls, groups: Iterable[Group], price: Price) -> "PriceBook":
        """Price all responses of `groups` in one call."""
        merged = merge_by_prompt(groups)
        return cls(
            {
                (group.prompt.token_ids, response.token_ids): logprob
                for group, logprobs in zip(merged, price(merged), strict=True)
                for response, logprob in zip(group.responses, logprobs, strict=True)
            }
        )

    def logprobs(self, groups: Iterable[Group]) -> list[list[float]]:
        """One list per group, in the order of its responses. KeyError for a response that was not priced."""
        return [
            [self.prices[group.prompt.token_ids, response.token_ids] for response in group.responses]
            for group in groups
        ]

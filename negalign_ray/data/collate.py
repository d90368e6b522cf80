"""Groups to tensors: which rank trains on which groups, and how answers to one prompt share a row.

A *row* holds one prompt once and as many of its responses as fit; every response sees the prompt and its own earlier
tokens only, and its positions restart after the prompt. K answers to one prompt compute that prompt once:

    tokens     x0 x1 | a0 a1 | b0 b1 b2        rows of the mask (1 = may attend)     a1: 1 1 | 1 1 | 0 0 0
    positions   0  1 |  2  3 |  2  3  4                                              b1: 1 1 | 0 0 | 1 1 0

Rows are laid end to end, so nothing is padded: only attention needs to know where a row ends.

# Axes: S = tokens of all rows, T = tokens of one row, P = predicted response tokens, N = responses in the call, in the
# order (group 0 response 0, group 0 response 1, ...).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from negalign_ray.errors import DataError
from negalign_ray.records import Group


@dataclass(frozen=True)
class PackedRows:
    """Rows ready for a causal LM, and where in them each response token is predicted. Integer tensors are int64."""

    input_ids_S: Tensor
    position_ids_S: Tensor
    masks_TT: tuple[Tensor, ...]  # one per row, bool, True = may attend
    source_P: Tensor  # hidden[source] predicts `target` of response `response`
    target_P: Tensor
    response_P: Tensor
    num_responses: int
    max_position: int

    @property
    def num_tokens(self) -> int:
        """Tokens computed; a prompt repeated in several rows counts each time."""
        return len(self.input_ids_S)

    def to(self, device: torch.device) -> "PackedRows":
        return replace(
            self,
            input_ids_S=self.input_ids_S.to(device),
            position_ids_S=self.position_ids_S.to(device),
            masks_TT=tuple(mask_TT.to(device) for mask_TT in self.masks_TT),
            source_P=self.source_P.to(device),
            target_P=self.target_P.to(device),
            response_P=self.response_P.to(device),
        )


@dataclass(frozen=True, slots=True)
class _Row:
    prompt: Sequence[int]
    responses: list[tuple[int, Sequence[int]]]  # (index n, token ids)


def pack_rows(groups: Sequence[Group], *, max_row_tokens: int) -> PackedRows:
    """Tensors of all groups' responses under their bare prompts.

    A response that does not fit beside its prompt within `max_row_tokens` gets a (longer) row of its own.
    DataError: a group with an empty prompt, because nothing would predict the first response token.
    """
    rows: list[_Row] = []
    first_response = 0
    for group in groups:
        prompt = group.prompt.token_ids
        if not prompt:
            raise DataError(f"prompt {group.prompt.prompt_id} has no tokens; give it text or a chat template with one.")
        lengths = [len(response.token_ids) for response in group.responses]
        for members in first_fit(lengths, max_row_tokens - len(prompt)):
            rows.append(_Row(prompt, [(first_response + k, group.responses[k].token_ids) for k in members]))
        first_response += len(group.responses)
    return _lay_out(rows, num_responses=first_response)


def dummy_rows() -> PackedRows:
    """One row of two tokens and one predicted position: lets a rank without groups join forward and backward."""
    return _lay_out([_Row(prompt=[0], responses=[(0, [0])])], num_responses=1)


def _lay_out(rows: Sequence[_Row], *, num_responses: int) -> PackedRows:
    input_ids: list[int] = []
    positions: list[int] = []
    source: list[int] = []
    target: list[int] = []
    response_of: list[int] = []
    masks_TT: list[Tensor] = []
    for row in rows:
        p = len(row.prompt)
        last_of_prompt = len(input_ids) + p - 1  # it predicts the first token of every response
        input_ids += row.prompt
        positions += range(p)
        for n, tokens in row.responses:
            if not tokens:
                continue  # an empty response has log-prob 0 and occupies nothing
            source += [last_of_prompt, *range(len(input_ids), len(input_ids) + len(tokens) - 1)]
            target += tokens
            response_of += [n] * len(tokens)
            input_ids += tokens
            positions += range(p, p + len(tokens))
        masks_TT.append(_mask(p, [len(tokens) for _, tokens in row.responses]))
    input_ids_S, position_ids_S, source_P, target_P, response_P = (
        torch.tensor(values, dtype=torch.int64) for values in (input_ids, positions, source, target, response_of)
    )
    return PackedRows(
        input_ids_S,
        position_ids_S,
        tuple(masks_TT),
        source_P,
        target_P,
        response_P,
        num_responses=num_responses,
        max_position=max(positions, default=0),
    )


def _mask(prompt_length: int, response_lengths: Sequence[int]) -> Tensor:
    """Bool [T, T]: causal within the prompt and within each response; every response sees the whole prompt."""
    blocks = [torch.ones(length, length, dtype=torch.bool) for length in (prompt_length, *response_lengths)]
    mask_TT = torch.block_diag(*blocks).tril()
    mask_TT[prompt_length:, :prompt_length] = True
    return mask_TT


def share_of(group_tokens: Sequence[int], *, rank: int, world_size: int, micro_batch_tokens: int) -> list[list[int]]:
    """Indices of the groups that `rank` trains on, one inner list per micro-batch. No collective: every rank computes
    the same plan from the same lengths.

    Longest-processing-time greedy balances tokens over ranks; whole groups fill micro-batches up to the budget (a
    group larger than it sits alone). Every rank gets the same number of micro-batches, some of them empty, because
    ZeRO-2 and 3 need every rank in every backward.

        tokens [5, 4, 3, 3], 2 ranks, budget 6  ->  rank 0 [[0], [3]] (8 tokens), rank 1 [[1], [2]] (7)
    """
    shares = longest_first(group_tokens, num_bins=world_size)
    plans = []
    for members in shares:
        bins = first_fit([group_tokens[i] for i in members], micro_batch_tokens)
        plans.append([[members[i] for i in positions] for positions in bins])
    count = max(map(len, plans))
    mine = plans[rank]
    return mine + [[] for _ in range(count - len(mine))]


def longest_first(sizes: Sequence[int], *, num_bins: int) -> list[list[int]]:
    """Balance `sizes` over exactly `num_bins` bins: largest first, each into the least loaded bin (ties: the first)."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    loads = [0] * num_bins
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        target = loads.index(min(loads))
        bins[target].append(index)
        loads[target] += sizes[index]
    return bins


def first_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Largest first, each into the first bin with room; one larger than `capacity` gets a bin of its own."""
    bins: list[list[int]] = []
    loads: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        fitting = (b for b, load in enumerate(loads) if load + sizes[index] <= capacity)
        target = next(fitting, None)
        if target is None:
            bins.append([index])
            loads.append(sizes[index])
        else:
            bins[target].append(index)
            loads[target] += sizes[index]
    return bins

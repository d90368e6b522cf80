"""Groups to tensors: which rank trains on which groups, and how answers to one prompt share a row.

A *row* holds one prompt once and as many of its responses as fit; every response sees the prompt and its own earlier
tokens only, and its positions restart after the prompt. K answers to one prompt compute that prompt once:

    tokens     x0 x1 | a0 a1 | b0 b1 b2        rows of the mask (1 = may attend)     a1: 1 1 | 1 1 | 0 0 0
    positions   0  1 |  2  3 |  2  3  4                                              b1: 1 1 | 0 0 | 1 1 0

# Axes: B = rows, T = tokens of the longest row, P = predicted response tokens, N = responses in the call, in the order
# (group 0 response 0, group 0 response 1, ...).
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

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    mask_B1TT: Tensor  # bool, True = may attend; padding attends to itself only (a row of False would give nan)
    row_P: Tensor  # hidden[row, col] predicts `target` of response `response`
    col_P: Tensor
    target_P: Tensor
    response_P: Tensor
    num_responses: int
    num_tokens: int  # without padding; a prompt repeated in several rows counts each time
    max_position: int

    def to(self, device: torch.device) -> "PackedRows":
        return replace(
            self,
            **{name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)},
        )


@dataclass(frozen=True, slots=True)
class _Row:
    prompt: Sequence[int]
    responses: list[tuple[int, Sequence[int]]]  # (index n, token ids)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + sum(len(tokens) for _, tokens in self.responses)


def pack_rows(groups: Sequence[Group], *, max_row_tokens: int, pad_id: int) -> PackedRows:
    """Tensors of all groups' responses under their bare prompts; rows are sorted by length, longest first.

    A response that does not fit beside its prompt within `max_row_tokens` gets a (longer) row of its own.
    DataError: a group with an empty prompt, because nothing would predict the first response token.
    """
    rows: list[_Row] = []
    first_response = 0
    for group in groups:
        if not group.prompt.token_ids:
            raise DataError(f"prompt {group.prompt.prompt_id} has no tokens; give it text or a chat template with one.")
        rows += _rows_of(group, first_response, max_row_tokens)
        first_response += len(group.responses)
    rows.sort(key=lambda row: -row.num_tokens)
    return _tensors(rows, num_responses=first_response, pad_id=pad_id)


def dummy_rows(*, pad_id: int) -> PackedRows:
    """One row of two tokens and one predicted position: lets a rank without groups join forward and backward."""
    return _tensors([_Row(prompt=[pad_id], responses=[(0, [pad_id])])], num_responses=1, pad_id=pad_id)


def _rows_of(group: Group, first_response: int, max_row_tokens: int) -> list[_Row]:
    """The fewest rows that first-fit finds, then evened out, because every row is padded to the longest one."""
    prompt = group.prompt.token_ids
    room = max_row_tokens - len(prompt)
    responses = [(first_response + k, response.token_ids) for k, response in enumerate(group.responses)]
    responses.sort(key=lambda item: (-len(item[1]), item[0]))
    lengths = [len(tokens) for _, tokens in responses]
    bins = first_fit(lengths, room)
    even = longest_first(lengths, num_bins=len(bins))
    if max((sum(lengths[i] for i in members) for members in even), default=0) <= room:
        bins = even
    return [_Row(prompt, [responses[i] for i in members]) for members in bins]


def _tensors(rows: Sequence[_Row], *, num_responses: int, pad_id: int) -> PackedRows:
    B, T = len(rows), max((row.num_tokens for row in rows), default=0)
    input_ids_BT = torch.full((B, T), pad_id, dtype=torch.int64)
    position_ids_BT = torch.zeros((B, T), dtype=torch.int64)
    causal_TT = torch.ones(T, T, dtype=torch.bool).tril()
    mask_BTT = torch.eye(T, dtype=torch.bool).repeat(B, 1, 1)
    row_P, col_P, target_P, response_P = [], [], [], []
    max_position = 0
    for b, row in enumerate(rows):
        p = len(row.prompt)
        input_ids_BT[b, :p] = torch.tensor(row.prompt)
        position_ids_BT[b, :p] = torch.arange(p)
        mask_BTT[b, :p, :p] = causal_TT[:p, :p]
        start = p
        for n, tokens in row.responses:
            length = len(tokens)
            if not length:
                continue  # an empty response has log-prob 0 and occupies nothing
            end = start + length
            input_ids_BT[b, start:end] = torch.tensor(tokens)
            position_ids_BT[b, start:end] = torch.arange(p, p + length)
            mask_BTT[b, start:end, :p] = True
            mask_BTT[b, start:end, start:end] = causal_TT[:length, :length]
            row_P += [b] * length
            col_P += [p - 1, *range(start, end - 1)]  # the prompt's last token predicts the first response token
            target_P += tokens
            response_P += [n] * length
            max_position = max(max_position, p + length - 1)
            start = end
    index_P = [torch.tensor(values, dtype=torch.int64) for values in (row_P, col_P, target_P, response_P)]
    num_tokens = sum(row.num_tokens for row in rows)
    return PackedRows(
        input_ids_BT, position_ids_BT, mask_BTT[:, None], *index_P, num_responses, num_tokens, max_position
    )


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

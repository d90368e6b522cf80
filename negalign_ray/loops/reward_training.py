"""How a reward model learns: the whole loop of one rank. Knows torch.distributed, and neither Ray nor files.

    epoch: units in seeded order --prompts_per_step--> batch --deal--> this rank's share --micro-batches--> one step

The loss is a sum over items divided by the item counts of the whole batch, and ranks are averaged by DDP, so the number
of ranks and the micro-batches change nothing. Dropout stays off (the backbone is in evaluation mode) for the same
reason. With a frozen backbone every text's features are computed once, standardised, and only the heads are trained;
the standardisation is folded into them afterwards.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from negalign_ray.errors import NonFiniteError
from negalign_ray.rewards.comparisons import ABSENT, Unit, count_items, item_losses, joined_items
from negalign_ray.rewards.pair_input import Encoded, PairEncoder
from negalign_ray.rewards.protocol import Pair
from negalign_ray.rewards.reward_network import RewardNetwork
from negalign_ray.settings.reward import RewardTrainingConfig

# Axes: N = different rows of the data, R = rows of a micro-batch, H = hidden size, C = heads.
Report = Callable[[dict[str, Any]], None]
MAX_CENTRING_UNITS = 2000  # prompts that place the zero of a pairwise head
MIN_STD = 1e-6


def lr_factor(step: int, *, num_steps: int, warmup_frac: float) -> float:
    """Share of the learning rate at 0-based `step`: up to 1 over the warm-up, then down towards 0, linearly.

    10 steps, warmup_frac 0.2  ->  0.5, 1, 1, 0.875, ... 0.125
    """
    num_warmup = round(warmup_frac * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    return 1 - (step - num_warmup) / max(num_steps - num_warmup, 1)


def batches(units: Sequence[Unit], *, size: int, epochs: int, seed: int) -> Iterator[list[Unit]]:
    """Each epoch every unit once, in an order of its own; the same on every rank. The last batch may be smaller."""
    for epoch in range(epochs):
        order = list(range(len(units)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        for start in range(0, len(order), size):
            yield [units[index] for index in order[start : start + size]]


def deal(batch: Sequence[Unit], *, rank: int, world_size: int) -> list[Unit]:
    """This rank's units: dealt longest first, so that ranks get about equal work and neighbours equal lengths."""
    return sorted(batch, key=lambda unit: -unit.num_chars)[rank::world_size]


def pack(units: Sequence[Unit], lengths: Sequence[Sequence[int]], *, max_tokens: int) -> list[list[int]]:
    """Indexes of `units` in micro-batches of at most `max_tokens` padded tokens (one unit may exceed it alone)."""
    packed: list[list[int]] = []
    num_rows = longest = 0
    for index, unit in enumerate(units):
        longest = max(longest, *lengths[index])
        num_rows += len(unit.rows)
        if not packed or num_rows * longest > max_tokens:
            packed.append([])
            num_rows, longest = len(unit.rows), max(lengths[index])
        packed[-1].append(index)
    return packed


class RewardLoop:
    """`run` trains `network` in place; `rewards` scores rows with it, shared among the ranks."""

    def __init__(
        self,
        network: RewardNetwork,
        encoder: PairEncoder,
        config: RewardTrainingConfig,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = "cpu",
        report: Report = lambda row: None,
    ) -> None:
        self._network, self._encoder, self._config = network.to(device), encoder, config
        self._rank, self._world_size, self._device, self._report = rank, world_size, device, report
        self._features: dict[Pair, Tensor] = {}  # [H] each, standardised; frozen backbones only

    def run(self, units: Sequence[Unit]) -> None:
        """Raises NonFiniteError. Every rank must call it with the same units."""
        config = self._config
        standard = self._freeze(units) if config.model.frozen else None
        trained: nn.Module = self._network.heads if config.model.frozen else self._network
        if self._world_size > 1:  # unused parameters: some backbones keep some that the pooled states do not need
            trained = DistributedDataParallel(trained, find_unused_parameters=not config.model.frozen)
        self._optimise(trained, units)
        if standard is not None:
            self._fold(*standard)
        self._centre(units)

    def rewards(self, rows: Sequence[Pair]) -> Tensor:
        """[N, C] on the CPU, the same on every rank."""
        return self._gathered(rows, self._network)

    # Training

    def _optimise(self, trained: nn.Module, units: Sequence[Unit]) -> None:
        config, learners = self._config, self._config.learners
        heads = list(self._network.heads.parameters())
        groups: list[dict[str, Any]] = [{"params": heads, "lr": learners.head_lr}]
        if not config.model.frozen:
            groups.append({"params": list(self._network.backbone.parameters()), "lr": learners.lr})
        parameters = [parameter for group in groups for parameter in group["params"]]
        optimizer = torch.optim.AdamW(groups, weight_decay=learners.weight_decay)
        num_steps = config.num_epochs * math.ceil(len(units) / learners.prompts_per_step)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: lr_factor(step, num_steps=num_steps, warmup_frac=learners.warmup_frac)
        )
        self._network.eval()
        order = batches(units, size=learners.prompts_per_step, epochs=config.num_epochs, seed=config.seed)
        for step, batch in enumerate(order):
            started = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            loss, hits = self._backward(trained, batch)
            norm = float(nn.utils.clip_grad_norm_(parameters, learners.max_grad_norm))
            if not math.isfinite(loss) or not math.isfinite(norm):
                reason = f"loss {loss}, gradient norm {norm} at step {step + 1}; lower learners.lr or learners.head_lr"
                raise NonFiniteError(reason, role="reward_learner", rank=self._rank)
            optimizer.step()
            schedule.step()
            seconds = time.perf_counter() - started
            row = {"step": step + 1, "steps": num_steps, "loss": loss, "accuracy_frac": hits, "grad_norm": norm}
            self._report(row | {"step_s": seconds})

    def _backward(self, trained: nn.Module, batch: Sequence[Unit]) -> tuple[float, float]:
        """(loss, share of items whose margin is positive) of the whole batch; gradients are those of its mean."""
        counts = count_items(batch)
        weights = {head: self._config.heads[head].weight / count for head, count in counts.items()}
        share = deal(batch, rank=self._rank, world_size=self._world_size)
        encoded = [] if self._config.model.frozen else [self._encoder.encode(unit.rows) for unit in share]
        lengths = [[len(row["input_ids"]) for row in rows] for rows in encoded] or [[1] * len(u.rows) for u in share]
        parts = pack(share, lengths, max_tokens=self._config.learners.micro_batch_tokens) or [[]]
        total = torch.zeros(2)
        for number, part in enumerate(parts):
            is_last = number == len(parts) - 1
            quiet = nullcontext() if is_last or self._world_size == 1 else trained.no_sync()  # type: ignore[operator]
            with quiet:
                units = [share[index] for index in part]
                rewards_RC = trained(self._inputs(units, [encoded[index] for index in part] if encoded else []))
                items = joined_items(units)
                losses_I = item_losses(rewards_RC, items)
                weights_I = torch.tensor([weights[item.head] for item in items], device=losses_I.device)
                loss = (weights_I * losses_I).sum() + 0.0 * rewards_RC.sum()  # a share without units still takes part
                (loss * self._world_size).backward()  # DDP divides by the number of ranks
            total += torch.stack([loss.detach(), (losses_I < math.log(2)).sum()]).cpu()
        total = self._summed(total)
        return float(total[0]), float(total[1]) / max(sum(counts.values()), 1)

    def _inputs(self, units: Sequence[Unit], encoded: Sequence[list[Encoded]]) -> Any:
        """What the trained module takes: features of a frozen backbone, or tokens. One idle row where there is none."""
        if self._config.model.frozen:
            rows = [self._features[row] for unit in units for row in unit.rows]
            return torch.stack(rows or [next(iter(self._features.values()))])
        tokens = [row for rows in encoded for row in rows] or self._encoder.encode([("", "idle")])
        return self._encoder.batch(tokens, device=self._device)

    # A frozen backbone

    def _freeze(self, units: Sequence[Unit]) -> tuple[Tensor, Tensor]:
        """Compute and standardise the features of every row; returns mean and standard deviation, [H] each."""
        for parameter in self._network.backbone.parameters():
            parameter.requires_grad_(False)
        rows = list(dict.fromkeys(row for unit in units for row in unit.rows))
        features_NH = self._gathered(rows, self._network.features).to(self._device)
        mean_H, std_H = features_NH.mean(0), features_NH.std(0, correction=0).clamp_min(MIN_STD)
        self._features = dict(zip(rows, (features_NH - mean_H) / std_H, strict=True))
        return mean_H, std_H

    @torch.no_grad()
    def _fold(self, mean_H: Tensor, std_H: Tensor) -> None:
        """w (f - mean) / std + b = (w / std) f + (b - w mean / std): heads that read the plain features."""
        heads = self._network.heads
        heads.weight.div_(std_H)
        heads.bias.sub_(heads.weight @ mean_H)
        self._features = {}

    # All rows

    @torch.no_grad()
    def _centre(self, units: Sequence[Unit]) -> None:
        """Pairwise heads know differences only: put their zero midway between high and low training rows."""
        columns = [column for column, head in enumerate(self._config.heads) if head.objective == "pairwise"]
        if not columns:
            return
        some = list(units[:MAX_CENTRING_UNITS])
        rewards_RC = self.rewards([row for unit in some for row in unit.rows])
        items = joined_items(some)
        for column in columns:
            pairs = [item for item in items if item.head == column and ABSENT not in (item.high, item.low)]
            if pairs:
                high = rewards_RC[[item.high for item in pairs], column].mean()
                low = rewards_RC[[item.low for item in pairs], column].mean()
                self._network.heads.bias[column] -= (high + low).to(self._device) / 2

    @torch.no_grad()
    def _gathered(self, rows: Sequence[Pair], function: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        """[N, ...] `function` of every row: ranks take turns by length, micro-batches bound the memory."""
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index][0]) - len(rows[index][1]))
        mine = order[self._rank :: self._world_size]
        singles = [Unit((rows[index],), ()) for index in mine]
        encoded = self._encoder.encode([rows[index] for index in mine])
        lengths = [[len(row["input_ids"])] for row in encoded]
        parts, done = [], 0
        for part in pack(singles, lengths, max_tokens=self._config.learners.micro_batch_tokens):
            parts.append(function(self._encoder.batch([encoded[i] for i in part], device=self._device)).float().cpu())
            done += len(part)
            self._report({"texts": done * self._world_size, "of_texts": len(rows)})
        mine_values = torch.cat(parts) if parts else None
        shares: list[Any] = [(mine, mine_values)]
        if self._world_size > 1:
            shares = [None] * self._world_size
            dist.all_gather_object(shares, (mine, mine_values))
        places = [index for indexes, values in shares if values is not None for index in indexes]
        values_N = torch.cat([values for _, values in shares if values is not None])
        return values_N[torch.tensor(places).argsort()]

    def _summed(self, values: Tensor) -> Tensor:
        """The sum over ranks, on the CPU."""
        if self._world_size == 1:
            return values
        values = values.to(self._device)
        dist.all_reduce(values)
        return values.cpu()

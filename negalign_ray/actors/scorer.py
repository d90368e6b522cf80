"""The scorer role: reward heads behind one actor. Requests that arrive together are scored in one batch."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

import ray

from negalign_ray.actors.processes import open_log
from negalign_ray.config import Config, HeadConfig, Resources, RewardGate
from negalign_ray.models.device import device_of
from negalign_ray.records import Group, Response, Role
from negalign_ray.rewards import RewardHead, build_head

Pair = tuple[str, str]  # (prompt, response)


@ray.remote
class Scorer:
    """An asyncio actor: calls queue up while a batch runs in a thread, and the next batch takes them all."""

    def __init__(self, config: Config, *, heads: tuple[HeadConfig, ...], rank: int, log_name: str = "scorer") -> None:
        open_log(config.run_dir, f"{log_name}-{rank}")
        self._heads = load_heads(heads, resources=config.scorers)
        self._gate = config.sampling.reward_gate
        self._max_wait_s = config.scorers.max_batch_wait_s
        self._waiting: list[tuple[Sequence[Pair], asyncio.Future]] = []
        self._worker: asyncio.Task | None = None

    async def ready(self) -> bool:
        return True

    async def score(self, *groups: Group) -> tuple:
        """(cards, busy seconds, pairs scored) and then the groups with rewards, gated samples left out.

        A response that holds the scores of all heads (a carried one) keeps them.
        """
        started = time.perf_counter()
        pairs = [
            (group.prompt.text, response.text)
            for group in groups
            for response in group.responses
            if not self._has_scores(response)
        ]
        rewards = iter(await self.score_pairs(pairs))
        scored = []
        for group in groups:
            responses = [
                response if self._has_scores(response) else replace(response, rewards=next(rewards))
                for response in group.responses
            ]
            kept = tuple(response for response in responses if passes(response, self._gate))
            scored.append(replace(group, responses=kept))
        return ([group.card() for group in scored], time.perf_counter() - started, len(pairs)), *scored

    def _has_scores(self, response: Response) -> bool:
        return all(head.name in response.rewards for head in self._heads)

    async def score_pairs(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        """Head name -> score for every pair. Raises ScoreError when a head fails for good; never returns a stand-in."""
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((pairs, answer))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._max_wait_s)
            requests, self._waiting = self._waiting, []
            together = [pair for pairs, _ in requests for pair in pairs]
            try:
                rewards = await asyncio.to_thread(self._score_now, together)
            except Exception as error:  # every caller of this batch learns why
                for _, answer in requests:
                    if not answer.done():  # a caller that was cancelled has left it so
                        answer.set_exception(error)
                continue
            start = 0
            for pairs, answer in requests:
                if not answer.done():
                    answer.set_result(rewards[start : start + len(pairs)])
                start += len(pairs)

    def _score_now(self, pairs: Sequence[Pair]) -> list[dict[str, float]]:
        """Equal pairs are scored once."""
        unique = list(dict.fromkeys(pairs))
        by_head = {head.name: dict(zip(unique, head.score(unique), strict=True)) for head in self._heads}
        return [{name: scores[pair] for name, scores in by_head.items()} for pair in pairs]


def load_heads(heads: Sequence[HeadConfig], *, resources: Resources) -> list[RewardHead]:
    """On the device that the scorer reserved. ConfigError or ModelError: see `device_of` and `build_head`."""
    device = device_of("scorers", gpus=resources.gpus)
    return [build_head(head, device=device) for head in heads]


def passes(response: Response, gate: RewardGate | None) -> bool:
    """Human responses always pass; a sample passes when the gate's head finds it no worse than allowed."""
    return gate is None or response.role is not Role.SAMPLE or gate.passes(response.rewards[gate.head])

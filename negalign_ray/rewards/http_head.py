"""A reward head behind HTTP.

    POST target   {"pairs": [[prompt, response], ...]}     ->     200 {"scores": [number, ...]}

Deadline, retries and redirects: see json_post.py.
"""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from negalign_ray.rewards.json_post import JsonPost, PostError, bearer_of, check_url, shown
from negalign_ray.rewards.protocol import Pair, checked_scores, score_error


@dataclass(frozen=True)
class HTTPHead:
    """Always posts (prompt, response) pairs, at most `batch_size` a request; `input` does not apply."""

    name: str
    service: JsonPost
    batch_size: int

    @classmethod
    def load(
        cls,
        name: str,
        target: str,
        *,
        batch_size: int,
        deadline_s: float,
        max_retries: int,
        token_env: str | None = None,
    ) -> "HTTPHead":
        where = f"head {name!r}"
        url = check_url(target, where=f"{where}: target")
        headers: Mapping[str, str] = {}
        if token_env is not None:
            remedy = "Set it on every node that runs scorers, before Ray is started there."
            headers = bearer_of(token_env, where=where, remedy=remedy)
        service = JsonPost(where, url, deadline_s=deadline_s, max_retries=max_retries, headers=headers)
        return cls(name, service, batch_size)

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        if not pairs:
            return []
        # A thread of its own: the caller may already run an event loop (an async Ray actor does).
        with ThreadPoolExecutor(max_workers=1) as pool:
            return pool.submit(lambda: asyncio.run(self._score_all(pairs))).result()

    async def _score_all(self, pairs: Sequence[Pair]) -> list[float]:
        scores: list[float] = []
        async with self.service.client() as client:
            for start in range(0, len(pairs), self.batch_size):
                batch = pairs[start : start + self.batch_size]
                try:
                    body = await self.service.send(client, {"pairs": [list(pair) for pair in batch]})
                except PostError as error:
                    raise score_error(self.name, str(error)) from error
                if not isinstance(body, dict) or "scores" not in body:
                    reason = f'{shown(self.service.url)} answered JSON without a "scores" list.'
                    raise score_error(self.name, reason)
                scores += checked_scores(self.name, body["scores"], expected=len(batch))
        return scores

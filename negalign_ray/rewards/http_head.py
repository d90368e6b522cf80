"""A reward head behind HTTP.

    POST target   {"pairs": [[prompt, response], ...]}     ->     200 {"scores": [number, ...]}

One attempt has a deadline for all of it (connecting, sending, reading). Only what can get better by itself is tried
again, with exponential back-off: 5xx, a missed deadline, a broken or refused connection. Everything else fails at
once. Messages hold neither bodies nor credentials.
"""

import asyncio
import logging
import os
import re
import socket
import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from negalign_ray.errors import ConfigError
from negalign_ray.rewards.protocol import Pair, checked_scores, score_error

logger = logging.getLogger(__name__)
MAX_REDIRECTS = 3
SECRET_NAME = re.compile(r"key|token|secret|passw|auth|sig", re.IGNORECASE)  # of a parameter in a URL
KEEPS_METHOD = {307, 308}  # the other redirects turn a POST into a GET


class _TransientError(Exception):
    """An attempt failed in a way that may pass; the message is safe to show."""


def check_url(target: str, *, head: str) -> httpx.URL:
    """The parsed URL, or ConfigError; one with a secret in it is refused, because settings are written to files."""
    public = re.sub(r"//[^/@]*@", "//", target).partition("?")[0]
    try:
        url = httpx.URL(target)
    except httpx.InvalidURL as error:
        raise ConfigError(f"head {head!r}: target={public!r} is not a URL.") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise ConfigError(f"head {head!r}: target={public!r} must start with http:// or https:// and name a host.")
    secret = "a name or a password" if url.userinfo else next((n for n in url.params if SECRET_NAME.search(n)), None)
    if secret is not None:
        raise ConfigError(
            f"head {head!r}: target={public!r} holds {secret}, which would be written to config.yaml. Take it out, put "
            "it into an environment variable where the scorers run, and name that variable by token_env: it is sent as "
            "`Authorization: Bearer ...`."
        )
    return url


def bearer_of(token_env: str | None, *, head: str) -> Mapping[str, str]:
    """Headers. ConfigError when the variable is not set here."""
    if token_env is None:
        return {}
    token = os.environ.get(token_env)
    if not token:
        raise ConfigError(
            f"head {head!r}: the environment variable that token_env={token_env} names is not set on "
            f"{socket.gethostname()}. Set it on every node that runs scorers, before Ray is started there."
        )
    return {"Authorization": f"Bearer {token}"}


def shown(url: httpx.URL) -> str:
    """The URL without credentials and query."""
    port = f":{url.port}" if url.port else ""
    return f"{url.scheme}://{url.host}{port}{url.path}"


@dataclass(frozen=True)
class HTTPHead:
    """Always posts (prompt, response) pairs, at most `batch_size` a request; `input` does not apply."""

    name: str
    url: httpx.URL
    batch_size: int
    deadline_s: float
    max_retries: int
    tls: ssl.SSLContext
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # with the token
    first_wait_s: float = 0.25  # doubles with each retry, plus jitter
    max_wait_s: float = 10.0

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
        logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it logs every URL, query included
        return cls(
            name=name,
            url=check_url(target, head=name),
            batch_size=batch_size,
            deadline_s=deadline_s,
            max_retries=max_retries,
            tls=httpx.create_ssl_context(),  # reads the certificate store: once, not per call
            headers=bearer_of(token_env, head=name),
        )

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        if not pairs:
            return []
        # A thread of its own: the caller may already run an event loop (an async Ray actor does).
        with ThreadPoolExecutor(max_workers=1) as pool:
            return pool.submit(lambda: asyncio.run(self._score_all(pairs))).result()

    async def _score_all(self, pairs: Sequence[Pair]) -> list[float]:
        scores: list[float] = []
        async with httpx.AsyncClient(verify=self.tls, timeout=self.deadline_s, follow_redirects=False) as client:
            for start in range(0, len(pairs), self.batch_size):
                batch = pairs[start : start + self.batch_size]
                values = await self._with_retries(client, batch)
                scores += checked_scores(self.name, values, expected=len(batch))
        return scores

    async def _with_retries(self, client: httpx.AsyncClient, batch: Sequence[Pair]) -> object:
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.max_retries + 1),
            wait=wait_exponential_jitter(initial=self.first_wait_s, max=self.max_wait_s, jitter=self.first_wait_s),
            retry=retry_if_exception_type(_TransientError),
            before_sleep=self._log_retry,
            reraise=True,
        )
        try:
            return await retrying(self._attempt, client, batch)
        except _TransientError as error:
            reason = f"{error}; gave up after {self.max_retries + 1} attempts (max_retries={self.max_retries})."
            raise score_error(self.name, reason) from error

    def _log_retry(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        logger.warning("head %r: attempt %d failed: %s", self.name, state.attempt_number, error)

    async def _attempt(self, client: httpx.AsyncClient, batch: Sequence[Pair]) -> object:
        try:
            # httpx bounds each read, not the whole; a server that drips bytes would hold us for ever.
            response = await asyncio.wait_for(self._post(client, batch), timeout=self.deadline_s)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _TransientError(f"{shown(self.url)} gave no answer in deadline_s={self.deadline_s:g}") from error
        except httpx.TransportError as error:
            raise _TransientError(f"{shown(self.url)} is not reachable ({type(error).__name__})") from error
        if response.status_code >= 500:
            raise _TransientError(f"{shown(self.url)} answered {response.status_code}")
        if response.status_code != 200:
            raise score_error(self.name, f"{shown(self.url)} answered {response.status_code}; expected 200.")
        try:
            body = response.json()
        except ValueError as error:
            raise score_error(self.name, f"{shown(self.url)} did not answer with JSON.") from error
        if not isinstance(body, dict) or "scores" not in body:
            raise score_error(self.name, f'{shown(self.url)} answered JSON without a "scores" list.')
        return body["scores"]

    async def _post(self, client: httpx.AsyncClient, batch: Sequence[Pair]) -> httpx.Response:
        """POST, following only redirects that stay on the same host and keep the method and the encryption."""
        url = self.url
        payload = {"pairs": [list(pair) for pair in batch]}
        for _ in range(MAX_REDIRECTS + 1):
            response = await client.post(url, json=payload, headers=self.headers)
            if not response.has_redirect_location:
                return response
            target = url.join(response.headers["location"])
            same_place = (target.host, target.port) == (url.host, url.port)
            downgrade = url.scheme == "https" and target.scheme != "https"
            if response.status_code not in KEEPS_METHOD or not same_place or downgrade:
                raise score_error(
                    self.name,
                    f"{shown(self.url)} redirects ({response.status_code}) to {shown(target)}; texts are sent only to "
                    "the configured host. Set target to the final address if that is meant.",
                )
            url = target
        raise score_error(self.name, f"{shown(self.url)} redirects more than {MAX_REDIRECTS} times.")

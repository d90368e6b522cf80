"""POST of a JSON object to one service, with a deadline, retries, and no trust in where it redirects to.

One attempt has a deadline for all of it (connecting, sending, reading). Only what can get better by itself is tried
again, with exponential back-off: 5xx, 408, 429, a missed deadline, a broken or refused connection. Everything else
fails at once. Messages hold neither bodies nor credentials.
"""

import asyncio
import logging
import os
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from negalign_ray.errors import ConfigError

logger = logging.getLogger(__name__)
MAX_REDIRECTS = 3
SECRET_NAME = re.compile(r"key|token|secret|passw|auth|sig", re.IGNORECASE)  # of a parameter in a URL
KEEPS_METHOD = {307, 308}  # the other redirects turn a POST into a GET
MAY_PASS = {408, 429}  # of the statuses below 500: too slow, too many requests


class PostError(Exception):
    """No usable answer; the message is safe to show."""


class _TransientError(Exception):
    """An attempt failed in a way that may pass; the message is safe to show."""


def check_url(target: str, *, where: str) -> httpx.URL:
    """The parsed URL, or ConfigError; one with a secret in it is refused, because settings are written to files.

    `where` is the setting, as in `evaluation.judge.url`.
    """
    public = re.sub(r"//[^/@]*@", "//", target).partition("?")[0]
    try:
        url = httpx.URL(target)
    except httpx.InvalidURL as error:
        raise ConfigError(f"{where}={public!r} is not a URL.") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise ConfigError(f"{where}={public!r} must start with http:// or https:// and name a host.")
    secret = "a name or a password" if url.userinfo else next((n for n in url.params if SECRET_NAME.search(n)), None)
    if secret is not None:
        raise ConfigError(
            f"{where}={public!r} holds {secret}, which would be written to config.yaml. Take it out, put it into an "
            "environment variable, and name that variable by token_env: it is sent as `Authorization: Bearer ...`."
        )
    return url


def bearer_of(token_env: str, *, where: str, remedy: str) -> Mapping[str, str]:
    """Headers. ConfigError when the variable is not set here."""
    token = os.environ.get(token_env, "").strip()
    if not token:
        raise ConfigError(
            f"{where}: the environment variable that token_env={token_env} names is not set on "
            f"{socket.gethostname()}. {remedy}"
        )
    return {"Authorization": f"Bearer {token}"}


def shown(url: httpx.URL) -> str:
    """The URL without credentials and query."""
    port = f":{url.port}" if url.port else ""
    return f"{url.scheme}://{url.host}{port}{url.path}"


@dataclass(frozen=True)
class JsonPost:
    name: str  # of the service, for the log
    url: httpx.URL
    deadline_s: float  # one attempt
    max_retries: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold a key
    tls: ssl.SSLContext = field(default_factory=httpx.create_ssl_context)  # reads the certificate store: once
    first_wait_s: float = 0.25  # doubles with each retry, plus jitter
    max_wait_s: float = 10.0

    def __post_init__(self) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # at INFO it logs every URL, query included

    def client(self) -> httpx.AsyncClient:
        """For one event loop."""
        return httpx.AsyncClient(
            verify=self.tls, timeout=self.deadline_s, follow_redirects=False, headers=dict(self.headers)
        )

    async def send(self, client: httpx.AsyncClient, payload: object) -> object:
        """The JSON of a 200. Raises PostError."""
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self.max_retries + 1),
            wait=wait_exponential_jitter(initial=self.first_wait_s, max=self.max_wait_s, jitter=self.first_wait_s),
            retry=retry_if_exception_type(_TransientError),
            before_sleep=self._log_retry,
            reraise=True,
        )
        try:
            return await retrying(self._attempt, client, payload)
        except _TransientError as error:
            reason = f"{error}; gave up after {self.max_retries + 1} attempts (max_retries={self.max_retries})."
            raise PostError(reason) from error

    def _log_retry(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        logger.warning("%s: attempt %d failed: %s", self.name, state.attempt_number, error)

    async def _attempt(self, client: httpx.AsyncClient, payload: object) -> object:
        try:
            # httpx bounds each read, not the whole; a server that drips bytes would hold us for ever.
            response = await asyncio.wait_for(self._post(client, payload), timeout=self.deadline_s)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _TransientError(f"{shown(self.url)} gave no answer in deadline_s={self.deadline_s:g}") from error
        except httpx.TransportError as error:
            raise _TransientError(f"{shown(self.url)} is not reachable ({type(error).__name__})") from error
        if response.status_code >= 500 or response.status_code in MAY_PASS:
            raise _TransientError(f"{shown(self.url)} answered {response.status_code}")
        if response.status_code != 200:
            raise PostError(f"{shown(self.url)} answered {response.status_code}; expected 200.")
        try:
            return response.json()
        except ValueError as error:
            raise PostError(f"{shown(self.url)} did not answer with JSON.") from error

    async def _post(self, client: httpx.AsyncClient, payload: object) -> httpx.Response:
        """POST, following only redirects that stay on the same host and keep the method and the encryption."""
        url = self.url
        for _ in range(MAX_REDIRECTS + 1):
            response = await client.post(url, json=payload)
            if not response.has_redirect_location:
                return response
            target = url.join(response.headers["location"])
            same_place = (target.host, target.port) == (url.host, url.port)
            downgrade = url.scheme == "https" and target.scheme != "https"
            if response.status_code not in KEEPS_METHOD or not same_place or downgrade:
                raise PostError(
                    f"{shown(self.url)} redirects ({response.status_code}) to {shown(target)}; texts are sent only to "
                    "the configured host. Set the final address if that is meant."
                )
            url = target
        raise PostError(f"{shown(self.url)} redirects more than {MAX_REDIRECTS} times.")

"""Ray Jobs over the dashboard's HTTP: how a machine that is no node of a cluster hands it work, and asks about it.

Every request carries the token (RAY_AUTH_MODE=token) and has a deadline. Jobs that only ask are deleted again.
"""

import asyncio
import json
import os
import re
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from negalign_ray import errors
from negalign_ray.actors.cluster import token_error
from negalign_ray.actors.locate import why_silent
from negalign_ray.errors import ClusterError, NegalignError, StallError

REQUEST_S = 30.0  # one request
POLL_S = 0.5
RUN_KEY = "negalign_run"  # metadata of a job that is a run: its name
PROGRAM = "negalign-ray"  # on the PATH of the cluster's head
_BEGIN = "Running entrypoint for job "  # begins the line of Ray that the command's output follows
_ERROR = re.compile(r"^(?P<type>\w+Error): (?P<message>.+)$")


class Jobs(Protocol):
    """What is used of `JobSubmissionClient`."""

    def submit_job(
        self,
        *,
        entrypoint: str,
        submission_id: str | None = None,
        runtime_env: dict[str, Any] | None = None,
        metadata: dict[str, str] | None = None,
    ) -> str: ...

    def get_job_info(self, job_id: str) -> Any: ...

    def get_job_logs(self, job_id: str) -> str: ...

    def list_jobs(self) -> list[Any]: ...

    def stop_job(self, job_id: str) -> bool: ...

    def delete_job(self, job_id: str) -> bool: ...


class _Client(JobSubmissionClient):
    """With a deadline for every request, which Ray's own has not."""

    def __init__(self, address: str, *, request_s: float) -> None:
        self._request_s = request_s
        super().__init__(address)

    def _do_request(self, *arguments: Any, **settings: Any) -> Any:
        return super()._do_request(*arguments, timeout=self._request_s, **settings)


def open_jobs(address: str, *, request_s: float = REQUEST_S) -> _Client:
    """ClusterError when no dashboard answers at `address` (http://HOST:8265), TokenError when it refuses the token."""
    place = urlsplit(address)
    port = place.port or (443 if place.scheme == "https" else 80)
    if not place.hostname or place.username or place.password:
        raise ClusterError("--address must be of the form http://HOST:8265, without a name or a password in it.")
    if reason := why_silent(f"{place.hostname}:{port}"):
        raise ClusterError(
            f"no cluster at {address} ({reason}). Dashboards listen on their own machine only: forward the port, e.g. "
            "`ssh -L 8265:localhost:8265 HEAD`, and use http://localhost:8265."
        )
    with refusals(address), _no_other_address():
        return _Client(address, request_s=request_s)


@contextmanager
def refusals(address: str) -> Iterator[None]:
    """Inside, what Ray and HTTP raise becomes a typed error."""
    try:
        yield
    except AuthenticationError as error:
        raise token_error(address) from error
    except (OSError, RuntimeError) as error:  # OSError: also everything that `requests` raises
        raise ClusterError(f"{address} does not answer as a Ray cluster does: {_short(error)}.") from error


@contextmanager
def _no_other_address() -> Iterator[None]:
    """The client prefers what these name to the address that it is given."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def ask(
    jobs: Jobs, arguments: Sequence[str], *, deadline_s: float, pause: Callable[[float], None] = time.sleep
) -> dict[str, Any]:
    """What `negalign-ray ARGUMENTS` prints as JSON on the cluster's head.

    Raises what that command raised (errors.py), ClusterError when it could not be started, StallError when it takes too
    long.
    """
    job = _start(jobs, arguments)
    try:
        info = wait(jobs, job, deadline_s=deadline_s, pause=pause)
        _require_success(jobs, job, info, arguments)
        return answer_in(jobs.get_job_logs(job))
    finally:
        with suppress(OSError, RuntimeError):  # no reason to lose the answer, or the error
            _forget(jobs, job)


def wait(jobs: Jobs, job: str, *, deadline_s: float, pause: Callable[[float], None] = time.sleep) -> Any:
    """The job's info when it has ended; StallError when it takes longer than `deadline_s`."""
    until_s = time.monotonic() + deadline_s
    while not (info := jobs.get_job_info(job)).status.is_terminal():
        if time.monotonic() > until_s:
            reason = f"the job {job} has not ended within {deadline_s:g} s ({_short(info.message)})"
            raise StallError(reason, role="cluster")
        pause(POLL_S)
    return info


def stream(client: JobSubmissionClient, arguments: Sequence[str]) -> Iterator[str]:
    """What `negalign-ray ARGUMENTS` prints on the cluster's head, as it prints it, piece by piece.

    Raises what that command raised.
    """
    job = _start(client, arguments)
    try:
        is_command = False  # Ray's own words come first, in the same log
        for piece in follow(client, job):
            for line in piece.splitlines(keepends=True):
                if is_command and not _ERROR.match(line):  # an error is raised below
                    yield line
                is_command = is_command or line.startswith(_BEGIN)
        _require_success(client, job, wait(client, job, deadline_s=REQUEST_S), arguments)
    finally:
        with suppress(OSError, RuntimeError):
            _forget(client, job)


def _start(jobs: Jobs, arguments: Sequence[str]) -> str:
    entrypoint = shlex.join([PROGRAM, *arguments])
    return jobs.submit_job(entrypoint=entrypoint, submission_id=f"negalign-ask-{secrets.token_hex(4)}")


def _require_success(jobs: Jobs, job: str, info: Any, arguments: Sequence[str]) -> None:
    if info.status == JobStatus.SUCCEEDED:
        return
    raise error_in(jobs.get_job_logs(job)) or ClusterError(
        f"the cluster could not run `{PROGRAM} {arguments[0]}` ({_short(info.message)}); is negalign_ray installed "
        f"there, and {PROGRAM} on the PATH of its head?"
    )


def _forget(jobs: Jobs, job: str) -> None:
    if not jobs.get_job_info(job).status.is_terminal():
        jobs.stop_job(job)
        return  # Ray deletes only what has ended
    jobs.delete_job(job)


def answer_in(output: str) -> dict[str, Any]:
    """The last line that is a JSON object: Ray and libraries write lines of their own into the same log."""
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    raise ClusterError(f"the cluster's {PROGRAM} answered without JSON; is it of this version?")


def error_in(output: str) -> NegalignError | None:
    """The typed error that the command line printed (see cli/), as it was."""
    for line in reversed(output.splitlines()):
        match = _ERROR.match(line)
        kind = getattr(errors, match["type"], None) if match else None
        if match and isinstance(kind, type) and issubclass(kind, NegalignError):
            if issubclass(kind, errors.RoleError):
                return ClusterError(match["message"])  # its text says role and rank already
            return kind(match["message"])
    return None


# -- runs ------------------------------------------------------------------------------------------------------


def submit_run(jobs: Jobs, name: str, folder: Path, *, entrypoint: str) -> str:
    """Send `folder` and run the shell command `entrypoint` in it; the job's id."""
    return jobs.submit_job(
        entrypoint=entrypoint,
        submission_id=f"negalign-{name}-{secrets.token_hex(4)}",
        runtime_env={"working_dir": str(folder)},
        metadata={RUN_KEY: name},
    )


def jobs_of_run(jobs: Jobs, name: str) -> list[Any]:
    """Submitted under this name, the newest last."""
    found = [job for job in jobs.list_jobs() if (job.metadata or {}).get(RUN_KEY) == name and job.submission_id]
    return sorted(found, key=lambda job: job.start_time or 0)


def follow(client: JobSubmissionClient, job: str) -> Iterator[str]:
    """What the job prints, piece by piece, until it ends."""
    loop = asyncio.new_event_loop()
    pieces = client.tail_job_logs(job)
    try:
        while True:
            try:
                yield loop.run_until_complete(anext(pieces))
            except StopAsyncIteration:
                return
    finally:
        loop.run_until_complete(pieces.aclose())  # type: ignore[attr-defined]  # it is a generator
        loop.close()


def _short(value: object) -> str:
    return " ".join(str(value).split())[:300]

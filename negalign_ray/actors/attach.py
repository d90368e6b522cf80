"""A run that goes on in some cluster, from any process that may join that cluster."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayError

from negalign_ray.actors.cluster import refusal
from negalign_ray.actors.locate import ANY_LOCAL, Location, locate, namespace_of, run_of, why_silent
from negalign_ray.actors.logs import LogSource
from negalign_ray.actors.overview import Overview
from negalign_ray.actors.processes import conductor_name, typed
from negalign_ray.errors import ClusterError, NegalignError, NoSuchRunError, RunEndedError, StallError

log = logging.getLogger(__name__)

CALL_S = 30.0  # one call of the conductor, which answers within milliseconds


class RunHandle:
    """The conductor of a run that goes on; every call has a deadline.

    RunEndedError once it is over, StallError when the conductor does not answer, and what the conductor itself raises.
    """

    def __init__(
        self, location: Location, conductor: Any, *, deadline_s: float = CALL_S, get: Callable[..., Any] = ray.get
    ) -> None:
        self.name, self.run_dir = location.name, location.run_dir
        self._location, self._conductor, self._deadline_s, self._get = location, conductor, deadline_s, get
        self._told_dir: str | None = None  # where the run says that it is

    def status(self) -> Overview:
        overview = self.call("overview")
        self._told_dir = overview.run_dir
        return overview

    def stop(self) -> None:
        """As Ctrl-C: it ends after the step under way, with a checkpoint, the model and the table."""
        self.call("stop")

    def scale(self, role: str, num: int, *, deadline_s: float | None = None) -> str:
        """Ask for `num` actors of `role`; what came of it, in words. Without a deadline of its own it may take as long
        as the run waits for room, too."""
        if deadline_s is None:
            deadline_s = self._deadline_s + self.call("place_s")
        return self.call("scale", role, num, deadline_s=deadline_s)

    @property
    def logs(self) -> LogSource:
        return _LogsOfRun(self)

    def call(self, method: str, *arguments: Any, deadline_s: float | None = None) -> Any:
        deadline_s = deadline_s or self._deadline_s
        try:
            return self._get(getattr(self._conductor, method).remote(*arguments), timeout=deadline_s)
        except GetTimeoutError:
            raise StallError(
                f"run {self.name}: no answer to {method!r} within {deadline_s:g} s; see logs/conductor-0.log",
                role="conductor",
            ) from None
        except ActorDiedError:
            raise ended(self._location, told_dir=self._told_dir) from None
        except RayError as error:
            raise typed(error, role="conductor", rank=0) from error


@dataclass(frozen=True, slots=True)
class _LogsOfRun:
    """Through the conductor, for a run directory that this process does not see."""

    run: RunHandle

    def sizes(self) -> dict[str, int]:
        return self.run.call("log_sizes")

    def read(self, name: str, offset: int) -> bytes:
        return self.run.call("read_log", name, offset)


@contextmanager
def attach(run: str, address: str | None = None, *, deadline_s: float = CALL_S) -> Iterator[RunHandle]:
    """`run` is a run directory or a name; `address` as in `locate`. A process that is in a cluster stays in that one.

        with attach("d2o", "10.0.0.1:6379") as run:
            run.stop()

    Raises ClusterError (no cluster there), TokenError (another token), NoSuchRunError, RunEndedError.
    """
    location = locate(run, address)
    if location.has_ended:
        raise ended(location)
    with joined(location.address):
        yield RunHandle(location, find_conductor(location), deadline_s=deadline_s)


def find_conductor(location: Location) -> Any:
    try:
        return ray.get_actor(conductor_name(location.name), namespace=namespace_of(location.name))
    except ValueError:  # Ray's word for: there is none
        pass
    if location.run_dir is not None:
        raise ended(location)
    names = running()
    there = f"It has: {', '.join(names)}" if names else "No run goes on there"
    raise NoSuchRunError(f"the cluster at {location.address} has no run {location.name!r}. {there}.")


def running() -> list[str]:
    """Names of the runs that go on in the cluster that this process is in."""
    found = set()
    for actor in ray.util.list_named_actors(all_namespaces=True):
        name = run_of(actor["namespace"])
        if name is not None and actor["name"] == conductor_name(name):
            found.add(name)
    return sorted(found)


def ended(location: Location, *, told_dir: str | None = None) -> RunEndedError:
    folder = location.run_dir
    if folder is None:
        place = f"{told_dir}, on its cluster" if told_dir else "its run directory"
        return RunEndedError(f"run {location.name} has ended; its results are in {place}.")
    if (folder / "summary.json").is_file():
        return RunEndedError(
            f"run {location.name} has ended; its results are in {folder} (summary.json, model/, logs/)."
        )
    return RunEndedError(
        f"run {location.name} does not go on and has no summary.json: it was cut short. See {folder / 'logs'}; "
        f"`negalign-ray train --resume {folder}` goes on from its newest checkpoint."
    )


@contextmanager
def joined(address: str, *, init: Callable[..., Any] = ray.init) -> Iterator[None]:
    """This process in the cluster at `address` (host:port, or "auto": the one on this machine), to call its actors."""
    if address != ANY_LOCAL and (reason := why_silent(address)):  # Ray itself would ask for minutes
        raise ClusterError(f"no cluster at {address} ({reason}); look at `ray status` there, or give --address.")
    if ray.is_initialized():
        yield
        return
    try:
        init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises a dozen unrelated types, Exception itself among them
        raise join_error(error, address) from error
    try:
        yield
    finally:
        ray.shutdown()


def join_error(error: Exception, address: str) -> NegalignError:
    """The typed error behind what `ray.init` raised."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    refused = refusal(error, address)
    if refused is not None:
        return refused
    if address == ANY_LOCAL:
        return ClusterError(f"no cluster was found on this machine ({reason}); name one by --address or RAY_ADDRESS.")
    return ClusterError(
        f"the cluster at {address} cannot be joined from here ({reason}). From a machine that is no node of it, give "
        "--address http://HOST:8265 (its dashboard, which a tunnel can reach)."
    )

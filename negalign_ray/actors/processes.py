"""What every Ray actor of a run shares: resources, threads, a log file of its own, and failures that say who failed."""

import asyncio
import faulthandler
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError, RayError, RayTaskError

from negalign_ray.config import Resources
from negalign_ray.errors import NO_ROOM, DiedError, LostObjectError, NegalignError, RoleError, StallError


def conductor_name(run_name: str) -> str:
    return f"{run_name}/conductor"


def actor_options(resources: Resources, *, name: str, **more: Any) -> dict[str, Any]:
    """Ray options for one actor. Thread counts go into the environment, since libraries read them at import."""
    threads = str(resources.threads)
    return {
        "name": name,
        "num_cpus": resources.cpus,
        "num_gpus": resources.actor_gpus,
        "label_selector": dict(resources.labels) or None,
        "runtime_env": {"env_vars": thread_environment(threads)},
        **more,
    }


def start_actor(role: Any, options: Mapping[str, Any], *arguments: Any, **settings: Any) -> Any:
    """An actor of the class `role`, which is under `@ray.remote`; type checkers do not see what that makes of it."""
    return role.options(**options).remote(*arguments, **settings)


def thread_environment(threads: str) -> dict[str, str]:
    return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}


STACKS = signal.SIGUSR2  # makes a role's process write the stacks of its threads into its log


def open_log(run_dir: Path, name: str) -> None:
    """Send this process's output, library noise included, to <run>/logs/<name>.log, and say in <name>.json who it is.

    From now on the signal STACKS makes it write its stacks there too, whatever it does: the handler needs no lock.
    """
    path = run_dir / "logs" / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    context = ray.get_runtime_context()
    process = {"pid": os.getpid(), "node_id": context.get_node_id(), "actor_id": context.get_actor_id()}
    path.with_suffix(".json").write_text(json.dumps(process) + "\n", encoding="utf-8")
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    faulthandler.register(STACKS, file=2, all_threads=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)


async def within(call: Awaitable, *, deadline_s: float, setting: str, role: str, rank: int, version: int | None) -> Any:
    """Await a remote call; a missed deadline or any remote failure becomes a RoleError naming role, rank, version."""
    try:
        return await asyncio.wait_for(_as_coroutine(call), deadline_s)
    except TimeoutError:
        reason = f"no answer within deadlines.{setting}={deadline_s:g} s; raise it, or see this role's file in logs/"
        raise StallError(reason, role=role, rank=rank, weight_version=version) from None
    except RayError as error:
        raise typed(error, role=role, rank=rank, version=version) from error


async def _as_coroutine(call: Awaitable) -> Any:
    return await call


def typed(error: RayError, *, role: str, rank: int, version: int | None = None) -> NegalignError:
    """The typed error behind a Ray error; anything else becomes a RoleError with the reason in one line."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, NegalignError):
        cause = error.cause
        if isinstance(cause, RoleError) and cause.role == role:  # an engine does not know which rank it serves
            return type(cause)(cause.reason, role=role, rank=rank, weight_version=cause.weight_version or version)
        return cause
    if isinstance(error.cause if isinstance(error, RayTaskError) else error, ObjectLostError):
        reason = "what it was to read is gone with the node that held it"
        return LostObjectError(reason, role=role, rank=rank, weight_version=version)
    died = isinstance(error, RayActorError) and not error.actor_init_failed  # a constructor's error is its own word
    kind = DiedError if died else RoleError
    return kind(f"{_reason(error)}; see this role's file in logs/", role=role, rank=rank, weight_version=version)


def _reason(error: RayError) -> str:
    if isinstance(error, RayTaskError):
        return reason_of(error.cause)
    lines = str(error).strip().splitlines() or [repr(error)]
    if "creation task" in lines[0]:  # it died at the start: the last line is the constructor's own error
        return lines[-1]
    if isinstance(error, ActorUnavailableError):  # Ray finds out later which of them it is
        return "its process cannot be reached: it has died, or its node is lost, or the network fails"
    if isinstance(error, RayActorError):  # Ray's lines on who it was, then why
        why = next((line for line in lines if line.startswith(DEAD_BECAUSE)), "").removeprefix(DEAD_BECAUSE)
        return lines[0].rstrip(".") + (f": {why.partition('.')[0]}" if why else "")
    return lines[0]


DEAD_BECAUSE = "The actor is dead because "


def reason_of(error: BaseException | None) -> str:
    """What went wrong, in one line; a full disk with its remedy."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"the disk is full, or a quota is used up ({error}); free some space"
    return repr(error)


def wait_until_ready(calls: dict[str, Any], *, deadline_s: float) -> list[Any]:
    """Block until every actor answered its first call; says which ones did not, or failed, and what to do."""
    names = {reference: name for name, reference in calls.items()}
    pending = list(calls.values())
    _, late = ray.wait(pending, num_returns=len(pending), timeout=deadline_s)
    if late:
        role, rank = split_name(names[late[0]])
        waiting = ", ".join(sorted(names[reference] for reference in late))
        raise StallError(
            f"not ready within deadlines.start_s={deadline_s:g} s (still waiting: {waiting}; free resources: "
            f"{free_resources()}); raise the deadline or lower the roles' cpus/gpus",
            role=role,
            rank=rank,
        )
    results = []
    for name, reference in calls.items():
        try:
            results.append(ray.get(reference))
        except RayError as error:
            role, rank = split_name(name)
            raise typed(error, role=role, rank=rank) from error
    return results


def free_resources() -> dict[str, float]:
    """What nobody has reserved of the cluster."""
    return {key: value for key, value in ray.available_resources().items() if key in ("CPU", "GPU")}


def split_name(name: str) -> tuple[str, int]:
    """ "sampler-2" -> ("sampler", 2)"""
    role, _, rank = name.rpartition("-")
    return role, int(rank)


class Background:
    """Runs a call in a thread, so that the main thread can watch it and receive Ctrl-C."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.error: BaseException | None = None
        # Not Thread.join: interrupted by Ctrl-C, it marks a running thread as ended (CPython 3.11 and 3.12).
        self._done = threading.Event()
        threading.Thread(target=self._run, args=(call,), daemon=True, name="learners").start()

    @property
    def is_running(self) -> bool:
        return not self._done.is_set()

    def wait(self, seconds: float) -> None:
        self._done.wait(seconds)

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except BaseException as error:
            self.error = error
        finally:
            self._done.set()

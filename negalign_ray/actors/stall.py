"""What every role is doing when nothing moves: for logs/stall.log and for the error that ends the run.

    logs/<name>.json (who is where) --signal--> each process writes its stacks into logs/<name>.log --> logs/stall.log

Signals need no answer from a process: its stacks come even while a call hangs in foreign code. One that is stopped, or
gone, leaves none; then Ray says what it knows of the actor.
"""

import json
import logging
import os
import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import list_actors
from ray.util.state.exception import RayStateApiException

from negalign_ray.actors.processes import STACKS, split_name
from negalign_ray.errors import StallError
from negalign_ray.loops.watchdog import Activity, suspects

log = logging.getLogger(__name__)
FILE = Path("logs") / "stall.log"
ANSWER_S = 10.0  # for Ray, and for processes to write their stacks
FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<function>.+)$', re.MULTILINE)
THREAD = re.compile(r"^(?=(?:Current thread|Thread) 0x)", re.MULTILINE)
PACKAGE = "/negalign_ray/"
NO_SIGN = "a process that gives no sign"
NUM_TOLD = 4  # of those who hold up the run, in the error's message


@dataclass(frozen=True, slots=True)
class RoleProcess:
    """What <run>/logs/<name>.json says."""

    name: str
    pid: int
    node_id: str
    actor_id: str | None


def find_processes(run_dir: Path) -> list[RoleProcess]:
    """Of every role that has started in this run, by name; some may be gone."""
    files = sorted((run_dir / "logs").glob("*.json"))
    return [RoleProcess(file.stem, **json.loads(file.read_text(encoding="utf-8"))) for file in files]


def explain_stall(run_dir: Path, activities: Sequence[Activity] | None, *, still_s: float, setting: str) -> StallError:
    """Write logs/stall.log and name who holds up the run; `activities` None = the conductor does not answer."""
    processes = find_processes(run_dir)
    states = actor_states(processes)
    stacks = collect_stacks(run_dir, [each for each in processes if not states.get(each.name, "").startswith("DEAD")])
    if activities is None:
        held_up_by = [Activity("conductor", 0, "has not answered", still_s, works=True)]
    else:
        silence = Activity("conductor", 0, "has asked nobody for anything", still_s, works=True)
        held_up_by = suspects(activities) or [silence]
    # Ranks wait for each other in collectives: one whose process gives no sign is what the others wait for.
    places = {each: _place_of(each, processes, stacks) for each in held_up_by}
    held_up_by.sort(key=lambda each: places[each] != NO_SIGN)
    told = [f"{each}, in {places[each]}" for each in held_up_by]
    path = run_dir / FILE
    report = stall_text(activities or (), told, processes, states, stacks, still_s=still_s)
    path.write_text(report, encoding="utf-8")
    more = f"; and {len(told) - NUM_TOLD} more" if len(told) > NUM_TOLD else ""
    reason = (
        f"nothing has moved for {still_s:.0f} s ({setting}). {'; '.join(told[:NUM_TOLD])}{more}. What every role was "
        f"doing: {path}"
    )
    first = held_up_by[0]
    return StallError(reason, role=first.role, rank=first.rank, weight_version=first.weight_version)


def _place_of(who: Activity, processes: Sequence[RoleProcess], stacks: Mapping[str, str]) -> str:
    places = {place_in(stacks.get(each.name, "")) for each in processes if is_process_of(each.name, who)}
    return " and ".join(sorted(places)) or "a process that has not started"


def is_process_of(name: str, who: Activity) -> bool:
    """The process "reference-rpos-0" is one of "reference[0]", as "sampler-1" is that of "sampler[1]"."""
    role, rank = split_name(name)
    return rank == who.rank and role.partition("-")[0] == who.role


def stall_text(
    activities: Sequence[Activity],
    held_up_by: Sequence[str],
    processes: Sequence[RoleProcess],
    states: Mapping[str, str],
    stacks: Mapping[str, str],
    *,
    still_s: float,
) -> str:
    lines = [f"Nothing has moved for {still_s:.0f} s. Held up by:", *(f"  {each}" for each in held_up_by)]
    lines += ["", "What the conductor knows:"]
    lines += [f"  {activity}" for activity in activities] or ["  it does not answer"]
    lines += ["", "Processes, and what Ray says of them:"]
    for each in processes:
        lines.append(f"  {each.name}: pid {each.pid} on node {each.node_id[:12]}: {states.get(each.name, 'unknown')}")
    for each in processes:
        lines += ["", f"Stacks of {each.name} (innermost call first):", stacks.get(each.name, "none came").rstrip()]
    return "\n".join(lines) + "\n"


def place_in(stacks: str) -> str:
    """Where the thread that runs our code is: its innermost frame, and its innermost frame in this package.

    "select (/usr/lib/python3.11/selectors.py:468) under sample (/.../negalign_ray/actors/sampler.py:81)"
    """
    for thread in reversed(THREAD.split(stacks)):  # the main thread comes last
        frames = list(FRAME.finditer(thread))
        ours = [frame for frame in frames if PACKAGE in frame["file"]]
        if ours:
            innermost = _shown(frames[0])
            return innermost if frames[0] is ours[0] else f"{innermost} under {_shown(ours[0])}"
    return "unknown code" if stacks else NO_SIGN


def _shown(frame: re.Match[str]) -> str:
    return f"{frame['function']} ({frame['file']}:{frame['line']})"


# What Ray and the processes are asked


def actor_states(processes: Sequence[RoleProcess]) -> dict[str, str]:
    """Name -> what Ray knows: "ALIVE", "DEAD: ..."; nothing where its state API does not answer."""
    names = {each.actor_id: each.name for each in processes}
    job = ray.get_runtime_context().get_job_id()
    try:
        actors = list_actors(filters=[("job_id", "=", job)], limit=10_000, detail=True, timeout=int(ANSWER_S))
    except (RayStateApiException, RayError, OSError, ValueError) as error:
        log.warning("Ray's state API does not answer: %s", error)
        return {}
    return {
        names[actor.actor_id]: _state(actor.state, actor.death_cause) for actor in actors if actor.actor_id in names
    }


def _state(state: str, death_cause: Mapping | None) -> str:
    for cause in (death_cause or {}).values():
        if isinstance(cause, Mapping) and cause.get("error_message"):
            return f"{state}: {cause['error_message']}"
    return state


def collect_stacks(run_dir: Path, processes: Sequence[RoleProcess]) -> dict[str, str]:
    """Name -> the stacks of its threads, as far as they come within ANSWER_S."""
    logs = {each.name: run_dir / "logs" / f"{each.name}.log" for each in processes}
    starts = {name: path.stat().st_size for name, path in logs.items()}
    pids_of = defaultdict(list)
    for each in processes:
        pids_of[each.node_id].append(each.pid)
    calls = [
        _ask_for_stacks.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(pids)
        for node_id, pids in pids_of.items()
    ]
    ray.wait(calls, num_returns=len(calls), timeout=ANSWER_S)
    deadline_s = time.monotonic() + ANSWER_S
    sizes: dict[str, int] = {}
    while time.monotonic() < deadline_s:  # until nobody writes any more
        before, sizes = sizes, {name: path.stat().st_size for name, path in logs.items()}
        if sizes == before and all(sizes[name] > starts[name] for name in logs):
            break
        time.sleep(0.5)
    return {name: text for name, path in logs.items() if (text := _text_from(path, starts[name]))}


def _text_from(path: Path, start: int) -> str:
    with path.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")


@ray.remote(num_cpus=0, max_retries=0)
def _ask_for_stacks(pids: Sequence[int]) -> None:
    """On the node of these processes. Only workers of Ray are asked: a number may have been given to another since."""
    for pid in pids:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if command.startswith(b"ray::"):
            os.kill(pid, STACKS)

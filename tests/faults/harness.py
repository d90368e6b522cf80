"""Striking a run at a chosen moment, from outside.

with sabotage(config, strike) as saboteur:      strike(scene) runs in a thread: it waits for its moment, then strikes
    summary = train(config)
saboteur.seconds_to_next_step
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import ray

from negalign_ray.actors.locate import namespace_of
from negalign_ray.actors.processes import conductor_name
from negalign_ray.actors.stall import find_processes
from negalign_ray.actors.status import Status
from negalign_ray.config import Config
from negalign_ray.loops.watchdog import Activity
from tests.actors.conftest import read_rows

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.02
GIVE_UP_S = 240.0
both_engines = pytest.mark.parametrize("engine", ["transformers", "vllm"])
LONG_ANSWERS = ("sampling.max_new_tokens=200", "data.max_prompt_tokens=300")  # a call lasts: time to strike in it


@dataclass(frozen=True)
class Scene:
    """A run in this process, seen from outside: by its files and by what its conductor tells everybody."""

    config: Config
    is_over: threading.Event = field(default_factory=threading.Event)

    @property
    def conductor(self) -> Any:
        name = self.config.run.name
        return ray.get_actor(conductor_name(name), namespace=namespace_of(name))

    def status(self) -> Status:
        return ray.get(self.conductor.status.remote(), timeout=30)

    def phase(self) -> str:
        return ray.get(self.conductor.overview.remote(), timeout=30).phase

    def activities(self) -> tuple[Activity, ...]:
        return ray.get(self.conductor.activities.remote(), timeout=30)

    def pid(self, name: str) -> int:
        """Of the process that writes logs/<name>.log."""
        return next(process.pid for process in find_processes(self.config.run_dir) if process.name == name)

    def wait_until(self, moment: Callable[[], Any]) -> Any:
        """What `moment` gives, as soon as that is something."""
        deadline_s = time.monotonic() + GIVE_UP_S
        while time.monotonic() < deadline_s and not self.is_over.wait(POLL_S):
            try:
                found = moment()
            except (ValueError, ray.exceptions.GetTimeoutError):  # the conductor has no name yet, or much to do
                found = None
            if found:
                return found
        raise TimeoutError("the moment to strike never came")

    def wait_for_step(self, step: int) -> None:
        self.wait_until(lambda: self.status().step >= step)

    def wait_while_it(self, doing: str, *, role: str, rank: int = 0, for_s: float = 0.05) -> None:
        """Until the role has been doing this for a moment, and so is in the middle of it."""
        self.wait_until(
            lambda: any(
                (each.role, each.rank) == (role, rank) and each.doing.startswith(doing) and each.for_s > for_s
                for each in self.activities()
            )
        )


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def freeze(pid: int) -> None:
    """It exists, keeps its connections, and does nothing more: a hang."""
    os.kill(pid, signal.SIGSTOP)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone_within(pids: list[int], *, seconds: float) -> list[int]:
    """Those that still run afterwards."""
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s and any(is_running(pid) for pid in pids):
        time.sleep(0.2)
    return [pid for pid in pids if is_running(pid)]


class Saboteur:
    def __init__(self, scene: Scene, strike: Callable[[Scene], None]) -> None:
        self.scene, self._strike = scene, strike
        self.error: BaseException | None = None
        self.struck_s: float | None = None  # time.monotonic()
        self.next_step_s: float | None = None
        self._thread = threading.Thread(target=self._act, daemon=True, name="saboteur")

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        self.scene.is_over.set()
        self._thread.join(timeout=30)
        if self.error is not None:
            raise self.error
        assert self.struck_s is not None, "the run ended before the moment to strike came"

    @property
    def seconds_to_next_step(self) -> float:
        assert self.struck_s is not None
        assert self.next_step_s is not None, "no step was finished after the fault"
        return self.next_step_s - self.struck_s

    def seconds_since(self) -> float:
        assert self.struck_s is not None
        return time.monotonic() - self.struck_s

    def _act(self) -> None:
        try:
            self._strike(self.scene)
            self.struck_s = time.monotonic()
            metrics = self.scene.config.run_dir / "metrics.jsonl"
            before = _num_rows(metrics)
            while not self.scene.is_over.wait(POLL_S):
                if _num_rows(metrics) > before:
                    self.next_step_s = time.monotonic()
                    return
        except BaseException as error:
            self.error = error


def _num_rows(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@contextmanager
def sabotage(config: Config, strike: Callable[[Scene], None]) -> Iterator[Saboteur]:
    saboteur = Saboteur(Scene(config), strike)
    saboteur.start()
    try:
        yield saboteur
    except BaseException:
        saboteur.scene.is_over.set()
        raise
    saboteur.finish()


def run_alone(module: str, *arguments: str | Path, timeout_s: float = 400) -> dict[str, Any]:
    """The last line, as JSON, of a script of this folder in a process of its own, whose cluster has a token."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", f"tests.faults.{module}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment | token, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# What must hold after any fault


def require_whole_ledger(summary: dict[str, Any]) -> None:
    """Every order that was issued ended, once."""
    ends = dict(summary["orders"])
    assert ends.pop("issued") == sum(ends.values()), summary["orders"]


def require_each_group_trained_once(config: Config, *, steps: int) -> None:
    rows = [row for path in sorted((config.run_dir / "samples").glob("rank-*.jsonl")) for row in read_rows(path)]
    per_step = config.learners.groups_per_step
    assert [sum(row["step"] == step for row in rows) for step in range(1, steps + 1)] == [per_step] * steps
    orders = [row["order_id"] for row in rows]
    assert len(set(orders)) == len(orders), "a group was trained on twice"


def require_every_loss(config: Config, *, steps: int) -> None:
    rows = read_rows(config.run_dir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert all(row["learner/loss"] is not None for row in rows)


def require_sound(config: Config, summary: dict[str, Any]) -> None:
    """A run that went on: all steps, each group in one of them, every order counted, a model."""
    steps = config.learners.steps
    assert summary["steps"] == steps
    require_every_loss(config, steps=steps)
    require_each_group_trained_once(config, steps=steps)
    require_whole_ledger(summary)
    assert summary["orders"]["trained"] == steps * config.learners.groups_per_step
    assert (config.run_dir / "model" / "model.safetensors").is_file()


def events(config: Config, kind: str) -> list[dict[str, Any]]:
    lines = (config.run_dir / "events.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]

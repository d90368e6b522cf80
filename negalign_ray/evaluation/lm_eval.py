"""Public benchmarks by the Language Model Evaluation Harness (`lm_eval`), where it is installed.

    LmEval(tasks).run(model) --one process--> <out>/lm_eval.log, <out>/**/results_*.json --> {task: {metric: ...}}

It runs in a process of its own, on the exported folder, through `transformers`. Its tasks fetch their data sets
themselves unless they are on this machine; code from data sets or models is not run unless its own options ask for it.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from negalign_ray.errors import ConfigError, RoleError, StallError

logger = logging.getLogger(__name__)
OURS = ("--model", "-M", "--model_args", "-a", "--tasks", "-t", "--device", "--output_path", "-o")
LOG, COMMAND = "lm_eval.log", "command.json"
INCLUDE = "--include_path"
FIND_S = 300.0  # it imports torch and reads thousands of small files: about 20 s
# In a process of its own, on any of its versions from 0.4 on; the last line is {unknown name: [near names]}.
FIND = """
import difflib, json, sys
from lm_eval.tasks import TaskManager
include, *names = sys.argv[1:]
manager = TaskManager(include_path=include or None)
unknown = [name for name in names if not manager.match_tasks([name])]
print()
print(json.dumps({name: difflib.get_close_matches(name, manager.all_tasks) for name in unknown}))
"""
Metrics = dict[str, dict[str, float | None]]  # metric -> {"value", "stderr"}


def _is_installed() -> bool:
    return find_spec("lm_eval") is not None


@dataclass(frozen=True)
class LmEval:
    """What to run: the harness's own names of tasks, and more of its options ("--limit", "100")."""

    tasks: tuple[str, ...]
    options: tuple[str, ...] = ()
    python: str = sys.executable

    def __post_init__(self) -> None:
        if not self.tasks or not all(self.tasks):
            raise ConfigError("--lm-eval names no task; give some, as in --lm-eval hellaswag,arc_easy.")
        taken = [option for option in self.options if option.partition("=")[0] in OURS]
        if taken:
            raise ConfigError(f"--lm-eval-options: {taken[0]} is set by this command; leave it out.")

    def require_installed(self, *, is_installed: Callable[[], bool] = _is_installed) -> None:
        """ConfigError with the command that installs it."""
        if not is_installed():
            raise ConfigError(
                "--lm-eval: lm_eval is not installed; `pip install --editable '.[lm-eval]'` (or "
                "`pip install 'lm_eval[hf]'`), or leave --lm-eval out."
            )

    def require_tasks(self) -> None:
        """ConfigError for a task that the harness does not know, with near names. Where it cannot be asked, a warning:
        its own start says what is wrong."""
        names = [task for task in self.tasks if not _is_path(task)]
        command = [self.python, "-c", FIND, self._include_path(), *names]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=FIND_S, stdin=subprocess.DEVNULL)
            done.check_returncode()
            unknown = json.loads(done.stdout.splitlines()[-1])
        except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
            logger.warning("--lm-eval: the names of the tasks could not be checked (%s)", _why(error))
            return
        if unknown:
            named = [f"{task} (near it: {', '.join(near)})" if near else task for task, near in unknown.items()]
            raise ConfigError(
                f"--lm-eval: lm_eval has no task {', '.join(named)}; `python -m lm_eval ls tasks` lists them, "
                f'--lm-eval-options "{INCLUDE} FOLDER" adds your own.'
            )

    def _include_path(self) -> str:
        """The folder of the user's own tasks among the options, or ""."""
        found = ""
        for option, value in pairwise((*self.options, "")):
            name, is_joined, joined = option.partition("=")
            if name == INCLUDE:
                found = joined if is_joined else value
        return found

    def command(self, model: Path, *, out: Path, device: str, dtype: str) -> list[str]:
        """As a shell would get it; model arguments are JSON, so that a folder's name may hold commas."""
        arguments = {"pretrained": str(model), "dtype": dtype, "trust_remote_code": False}
        return [
            *(self.python, "-m", "lm_eval", "--model", "hf", "--model_args", json.dumps(arguments)),
            *("--tasks", ",".join(self.tasks), "--device", device, "--output_path", str(out)),
            *self.options,
        ]

    def run(self, model: Path, *, out: Path, device: str, dtype: str, deadline_s: float) -> dict[str, Metrics]:
        """Task -> metric -> value and standard error. Results of the same command in `out` are read, not made again.

        StallError after `deadline_s`; RoleError when the harness fails, with the last line that it wrote.
        """
        command = self.command(model, out=out, device=device, dtype=dtype)
        done = out / COMMAND
        if not done.is_file() or json.loads(done.read_text(encoding="utf-8")) != command:
            done.unlink(missing_ok=True)
            out.mkdir(parents=True, exist_ok=True)
            _run(command, log=out / LOG, deadline_s=deadline_s)
            newest_results(out)
            done.write_text(json.dumps(command) + "\n", encoding="utf-8")
        return metrics_of(newest_results(out))


def _is_path(task: str) -> bool:
    return "/" in task or task.endswith(".yaml") or Path(task).is_dir()


def _why(error: Exception) -> str:
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
    return (said.strip().splitlines() or [type(error).__name__])[-1][:300]


def _run(command: list[str], *, log: Path, deadline_s: float) -> None:
    with log.open("w", encoding="utf-8") as file:
        try:
            status = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, timeout=deadline_s
            ).returncode
        except subprocess.TimeoutExpired:
            reason = f"not done within deadlines.lm_eval_s={deadline_s:g} s; raise it, or name fewer tasks (log: {log})"
            raise StallError(reason, role="lm_eval") from None
    if status:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise RoleError(
            f"it ended with status {status}: {lines[-1] if lines else 'no output'} (log: {log})", role="lm_eval"
        )


def newest_results(out: Path) -> Mapping[str, Any]:
    """Of the files that the harness wrote; RoleError without one."""
    files = sorted(out.rglob("results*.json"), key=lambda path: path.stat().st_mtime_ns)
    if not files:
        raise RoleError(f"it wrote no results into {out}; see {LOG} there", role="lm_eval")
    return json.loads(files[-1].read_text(encoding="utf-8"))


def metrics_of(results: Mapping[str, Any]) -> dict[str, Metrics]:
    """{"arc": {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.1}} -> {"arc": {"acc": {"value": 0.5, "stderr":
    0.1}}}; a filter other than none stays in the metric's name. What is no number (alias, "N/A") is left out."""
    tasks: dict[str, Metrics] = {}
    for task, row in results["results"].items():
        metrics: Metrics = {}
        for key, value in row.items():
            name, _, filtered = key.partition(",")
            if not _is_number(value) or name.endswith("_stderr"):
                continue
            error = row.get(f"{name}_stderr,{filtered}")
            shown = name if filtered in ("", "none") else f"{name} ({filtered})"
            metrics[shown] = {"value": float(value), "stderr": float(error) if _is_number(error) else None}
        if metrics:
            tasks[task] = metrics
    return tasks


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

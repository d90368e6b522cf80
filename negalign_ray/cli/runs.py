"""Runs that go on elsewhere: `submit` one, look at it (`status`, `logs`), `stop` it, `scale` it.

A run is reached in one of two ways: from a node of its cluster (or the machine that it is on) through its conductor, or
from anywhere through the cluster's dashboard (--address http://HOST:8265), where the same command runs as a job.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from negalign_ray.errors import ConfigError, NegalignError, NoSuchRunError, RunEndedError, StallError

if TYPE_CHECKING:
    from negalign_ray.actors.attach import RunHandle
    from negalign_ray.actors.jobs import Jobs

SCALABLE = {"samplers": "sampler", "scorers": "scorer", "references": "reference"}  # section -> role
ASK_S = 120.0  # a job that only asks; Ray takes some seconds to start one
STOP_S = 3600.0
SCALE_S = 3600.0  # the run may wait for room, as long as its deadlines.place_s says
POLL_S = 1.0

Run = Annotated[str, typer.Argument(metavar="RUN", help="Name of the run, or its directory.")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="HOST:PORT of the cluster, or http://HOST:8265 from a machine outside it. Default: the cluster that the "
        "run directory names, else RAY_ADDRESS, else the one on this machine.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON instead.")]


def status(run: Run, address: Address = None, as_json: AsJson = False) -> None:
    """What a run does now: roles, versions, queues, rates, the time that is left, the last errors."""
    from negalign_ray.actors.overview import Overview
    from negalign_ray.cli import out
    from negalign_ray.cli.overview import overview_table

    with _reach(run, address) as reached:
        if isinstance(reached, Elsewhere):
            overview = Overview.from_json(reached.ask(["status"], deadline_s=ASK_S))
        else:
            overview = reached.status()
    _show(overview.to_json() if as_json else None)
    if not as_json:
        out.print(overview_table(overview))


def logs(
    run: Run,
    role: Annotated[str | None, typer.Argument(help="sampler, sampler-1, learner, conductor, ...")] = None,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    lines: Annotated[int, typer.Option(min=0, help="Last lines of every log; 0 = all of them.")] = 20,
) -> None:
    """The logs of a run's roles: from its directory where that is visible, else through the run."""
    from negalign_ray.actors.attach import attach
    from negalign_ray.actors.locate import is_going_on, locate
    from negalign_ray.actors.logs import LogFolder, LogReader

    http = _dashboard(run, address)
    if http is not None:
        more = [*([role] if role else []), "--lines", str(lines), *(["--follow"] if follow else [])]
        _print_from(http, ["logs", _far_name(run), *more])
        return
    location = locate(run, address)
    with contextlib.ExitStack() as stack:
        if (folder := location.run_dir) is not None:
            reader = LogReader(LogFolder(folder), run=location.name, role=role)
        else:
            handle = stack.enter_context(attach(run, address))
            reader = LogReader(handle.logs, run=location.name, role=role)
        _print_lines(reader.tail(lines), role)
        if follow:
            with contextlib.suppress(RunEndedError):  # how a handle says so
                _print_lines(reader.follow(lambda: folder is None or is_going_on(folder)), role)


def stop(
    run: Run,
    address: Address = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it has ended.")] = True,
    as_json: AsJson = False,
) -> None:
    """End a run as Ctrl-C does: after the step under way, with a checkpoint, the model and the table."""
    from negalign_ray.cli import err

    def say(text: str) -> None:
        err.print(text, markup=False, highlight=False, soft_wrap=True)

    with _reach(run, address) as reached:
        if isinstance(reached, Elsewhere):
            answer = reached.ask(["stop", *([] if wait else ["--no-wait"])], deadline_s=STOP_S + ASK_S)
        else:
            answer = stop_run(reached, wait=wait, say=say)
    _show(answer if as_json else None, stop_words(answer))


def scale(
    run: Run,
    roles: Annotated[list[str], typer.Argument(metavar="ROLE=NUM...", help="samplers=4 scorers=2 references=2")],
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Add or remove samplers, scorers and references while a run goes on."""
    wanted = wanted_numbers(roles)
    with _reach(run, address) as reached:
        if isinstance(reached, Elsewhere):
            answers = reached.ask(["scale", *roles], deadline_s=SCALE_S + ASK_S)
        else:
            answers = {section: reached.scale(SCALABLE[section], num) for section, num in wanted.items()}
    _show(answers if as_json else None, *(f"{section}: {answer}" for section, answer in answers.items()))


# -- where the run is ------------------------------------------------------------------------------------------


class Elsewhere:
    """A run behind a dashboard: the command is run there, as a job, and answers in JSON."""

    def __init__(self, run: str, address: str, jobs: "Jobs") -> None:
        self._run, self._address, self._jobs = run, address, jobs

    def ask(self, arguments: Sequence[str], *, deadline_s: float) -> dict[str, Any]:
        from negalign_ray.actors.jobs import ask, refusals

        command, *more = arguments
        with refusals(self._address):
            try:
                return ask(self._jobs, [command, self._run, *more, "--json"], deadline_s=deadline_s)
            except NoSuchRunError as error:
                raise self._why_absent() or error from None

    def _why_absent(self) -> NegalignError | None:
        """Why a run that was submitted is not there."""
        from negalign_ray.actors.jobs import jobs_of_run

        submitted = jobs_of_run(self._jobs, self._run)
        if not submitted:
            return None
        job = submitted[-1]
        state = f"job {job.submission_id}: {job.status}"
        if not job.status.is_terminal():
            return NoSuchRunError(f"run {self._run} is not up yet ({state}); ask again.")
        said = [line for line in self._jobs.get_job_logs(job.submission_id).splitlines() if line.strip()]
        return RunEndedError("\n".join([f"run {self._run} has ended ({state}). Its last words:", *said[-5:]]))


@contextlib.contextmanager
def _reach(run: str, address: str | None) -> "Iterator[RunHandle | Elsewhere]":
    http = _dashboard(run, address)
    if http is not None:
        from negalign_ray.actors.jobs import open_jobs

        yield Elsewhere(_far_name(run), http, open_jobs(http))
        return
    from negalign_ray.actors.attach import attach

    with attach(run, address) as handle:
        yield handle


def _dashboard(run: str, address: str | None) -> str | None:
    """The address of a dashboard, if that is how the run is to be reached."""
    from negalign_ray.actors.locate import is_http, locate

    address = address or locate(run).address
    return address if is_http(address) else None


def _far_name(run: str) -> str:
    """A run directory that is here is a name there; every other path is one on the cluster's head."""
    return Path(run).resolve().name if (Path(run) / "config.yaml").is_file() else run


# -- what the commands do --------------------------------------------------------------------------------------


def stop_run(
    handle: "RunHandle", *, wait: bool, say: Callable[[str], None], pause: Callable[[float], None] = time.sleep
) -> dict[str, Any]:
    """Ask for the end and wait for it; StallError when it takes longer than STOP_S."""
    overview = handle.status()
    handle.stop()
    phase, has_ended, until_s = "", False, time.monotonic() + STOP_S
    while wait and not has_ended:
        pause(POLL_S)
        try:
            overview = handle.status()
        except RunEndedError:
            has_ended = True
            continue
        if overview.phase != phase:
            phase = overview.phase
            say(f"step {overview.step}/{overview.num_steps}: {phase}")
        if time.monotonic() > until_s:
            raise StallError(f"run {handle.name} has not ended within {STOP_S:g} s: {phase}", role="conductor")
    return {
        "run": handle.name,
        "run_dir": overview.run_dir,
        "step": overview.step,
        "num_steps": overview.num_steps,
        "has_ended": has_ended,
    }


def stop_words(answer: dict[str, Any]) -> str:
    run, run_dir, step = answer["run"], answer["run_dir"], answer["step"]
    if not answer["has_ended"]:
        return f"run {run} ends after the step under way; its results will be in {run_dir}"
    ended = f"run {run} has ended after step {step} of {answer['num_steps']}; its results are in {run_dir}"
    return f"{ended}\nto go on: negalign-ray train --resume {run_dir}" if 0 < step < answer["num_steps"] else ended


def wanted_numbers(roles: Sequence[str]) -> dict[str, int]:
    """["samplers=4", "scorers=2"] -> {"samplers": 4, "scorers": 2}. ConfigError for anything else."""
    wanted = {}
    for text in roles:
        section, _, num = text.partition("=")
        if section not in SCALABLE or not num.isdecimal() or int(num) < 1:
            raise ConfigError(f"{text!r} is not of the form ROLE=NUM, with NUM from 1 on and {', '.join(SCALABLE)}.")
        wanted[section] = int(num)
    return wanted


def _show(values: dict[str, Any] | None, *lines: str) -> None:
    """`values` as one line of JSON, which `ask` reads; without them, the lines."""
    from negalign_ray.cli import out

    for line in lines if values is None else [json.dumps(values)]:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_lines(lines: Iterable[tuple[str, str]], role: str | None) -> None:
    from negalign_ray.cli import out

    for name, text in lines:
        line = text if name == role else f"{name} | {text}"
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_from(address: str, arguments: Sequence[str]) -> None:
    from negalign_ray.actors.jobs import open_jobs, refusals, stream
    from negalign_ray.cli import out

    client = open_jobs(address)
    with refusals(address):
        for piece in stream(client, arguments):
            out.print(piece, markup=False, highlight=False, soft_wrap=True, end="")

"""Where a run is: its name, its cluster, its folder. While it goes on, <run>/cluster.json tells other processes."""

import json
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from negalign_ray.config import RUN_NAME, RunConfig
from negalign_ray.errors import ConfigError

FILE_NAME = "cluster.json"
ANY_LOCAL = "auto"  # the cluster that runs on this machine
PROBE_S = 5.0  # to open a connection


@dataclass(frozen=True, slots=True)
class Location:
    name: str
    address: str  # host:port of the cluster, its http(s) address, or "auto"
    run_dir: Path | None = None  # None = not to be seen from here
    has_ended: bool = False  # says the run directory, which is all that is known of the cluster


@dataclass(frozen=True, slots=True)
class Meeting:
    """What cluster.json holds. The token is not in it: see token.py."""

    address: str
    pid: int  # of the driver
    host: str
    started_at: str


def write_meeting(run_dir: Path, meeting: Meeting) -> None:
    temporary = run_dir / f".{FILE_NAME}.tmp"
    temporary.write_text(json.dumps(asdict(meeting), indent=1) + "\n", encoding="utf-8")
    temporary.replace(run_dir / FILE_NAME)


def read_meeting(run_dir: Path) -> Meeting | None:
    """None when the run is over."""
    try:
        return Meeting(**json.loads((run_dir / FILE_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def require_idle(run_dir: Path) -> None:
    """ConfigError when a run goes on in this folder."""
    meeting = read_meeting(run_dir)
    if meeting is not None and _goes_on(meeting):
        raise ConfigError(
            f"a run goes on in {run_dir} (process {meeting.pid} on {meeting.host}); end it by `negalign-ray stop "
            f"{run_dir}`, or choose another --set run.name=.... If that process is long gone, delete "
            f"{run_dir / FILE_NAME}."
        )


def is_going_on(run_dir: Path) -> bool:
    meeting = read_meeting(run_dir)
    return meeting is not None and _goes_on(meeting)


def is_http(address: str) -> bool:
    """The address of a dashboard, not of the cluster itself."""
    return address.startswith(("http://", "https://"))


def _goes_on(meeting: Meeting) -> bool:
    if meeting.host == socket.gethostname():
        return _is_alive(meeting.pid)
    return why_silent(meeting.address) is None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


def why_silent(address: str, *, timeout_s: float = PROBE_S) -> str | None:
    """Why nothing listens at host:port; None when something does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
    except (OSError, ValueError) as error:
        return str(error)
    return None


def namespace_of(run_name: str) -> str:
    """The Ray namespace that all actors of a run live in: two runs share a cluster without meeting."""
    return f"negalign/{run_name}"


def run_of(namespace: str) -> str | None:
    """The run whose namespace it is; None = not one of ours."""
    prefix, _, name = namespace.partition("/")
    return name if prefix == "negalign" and name else None


def locate(run: str, address: str | None = None, *, environment: Mapping[str, str] = os.environ) -> Location:
    """`run` is a run directory or a run's name. Of a name, the folder is looked for where runs are by default.

    The cluster: `address`, else what the run directory says, else RAY_ADDRESS, else the one on this machine.
    ConfigError when `run` is neither.
    """
    folder = Path(run)
    is_folder = (folder / "config.yaml").is_file()
    name = folder.resolve().name if is_folder else run
    if not re.fullmatch(RUN_NAME, name):
        raise ConfigError(f"{run!r} is neither a run directory (it has no config.yaml) nor the name of a run.")
    if not is_folder:
        folder = RunConfig().dir / name
    run_dir = folder.resolve() if (folder / "config.yaml").is_file() else None
    meeting = read_meeting(run_dir) if run_dir else None
    if address is None and meeting is not None and is_folder:
        return Location(name, meeting.address, run_dir, has_ended=not _goes_on(meeting))
    address = address or environment.get("RAY_ADDRESS")
    if address is not None or run_dir is None:
        return Location(name, address or ANY_LOCAL, run_dir)
    if meeting is None:
        return Location(name, ANY_LOCAL, run_dir, has_ended=True)
    return Location(name, meeting.address, run_dir, has_ended=not _goes_on(meeting))

"""`negalign-ray submit`: what it packs, what could not be checked here, and how to go on with the job."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from negalign_ray.errors import RoleError

if TYPE_CHECKING:
    from negalign_ray.actors.submission import Checked
    from negalign_ray.settings.bundle import Bundle

MIB = 2**20
LIMIT_MIB = 100.0


def submit(
    config: Annotated[Path | None, typer.Argument(help="YAML file, merged over the preset.")] = None,
    address: Annotated[
        str, typer.Option("--address", envvar="RAY_ADDRESS", help="Dashboard of the cluster, e.g. http://HOST:8265.")
    ] = "http://localhost:8265",
    preset: Annotated[
        str | None, typer.Option("--preset", help="Name (see `negalign-ray presets`) or YAML file.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="One setting, merged last. Repeatable.")
    ] = None,
    include: Annotated[
        list[Path] | None, typer.Option("--include", help="One more file or folder to take along. Repeatable.")
    ] = None,
    limit_mib: Annotated[float, typer.Option(min=0.0, help="The most that is sent.")] = LIMIT_MIB,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show what the run prints until it ends; Ctrl-C only looks away.")
    ] = False,
) -> None:
    """Train on a cluster from any machine: check the run here, send what it needs, start it as a Ray job.

    Files named by relative paths are sent. Absolute paths are those of the cluster, and a relative run.dir lies in the
    home folder there.
    """
    from negalign_ray.actors.jobs import follow as output_of
    from negalign_ray.actors.jobs import open_jobs, refusals, wait
    from negalign_ray.actors.submission import check
    from negalign_ray.actors.submission import submit as send
    from negalign_ray.cli import DEFAULT_PRESET, err, out
    from negalign_ray.settings import load_config

    named = preset or (None if config else DEFAULT_PRESET)
    settings = load_config(preset=named, file=config, overrides=overrides or [])
    with err.status("checking"):
        checked = check(settings, include=include or [], limit_bytes=int(limit_mib * MIB))
    out.print(packed_table(checked.bundle))
    for line in unchecked_lines(checked):
        err.print(line, markup=False, highlight=False, soft_wrap=True)
    jobs = open_jobs(address)
    job = send(jobs, checked.bundle, address=address)
    name = settings.run.name
    lines = {
        "job": job,
        "status": f"negalign-ray status {name} --address {address}",
        "logs": f"negalign-ray logs {name} --address {address}",
        "stop": f"negalign-ray stop {name} --address {address}",
    }
    for key, value in lines.items():
        out.print(f"{key:8} {value}", markup=False, highlight=False, soft_wrap=True)
    if not follow:
        return
    with refusals(address):
        for piece in output_of(jobs, job):
            out.print(piece, markup=False, highlight=False, soft_wrap=True, end="")
        info = wait(jobs, job, deadline_s=30.0)
    if info.status != "SUCCEEDED":
        raise RoleError(f"the job {job} has {str(info.status).lower()}: {info.message}", role="driver")


def train_submitted() -> None:
    """What `submit` starts on the cluster: trains what lies in this folder."""
    from negalign_ray.actors.submission import unpack
    from negalign_ray.cli import run_training

    run_training(unpack(Path.cwd(), home=Path.home()))


def packed_table(bundle: "Bundle") -> Table:
    """One line for every setting that files are sent for."""
    table = Table(
        box=None, padding=(0, 2, 0, 0), title=f"{bundle.num_bytes / MIB:.2f} MiB to send", title_justify="left"
    )
    for heading in ("for", "files", "MiB", "first of them"):
        table.add_column(heading, justify="right" if heading in ("files", "MiB") else "left")
    settings = dict.fromkeys(file.setting for file in bundle.files)
    table.add_row("the run", "1", "0.00", "config.yaml")
    for setting in settings:
        files = [file for file in bundle.files if file.setting == setting]
        size = sum(file.num_bytes for file in files) / MIB
        table.add_row(setting, str(len(files)), f"{size:.2f}", files[0].name)
    return table


def unchecked_lines(checked: "Checked") -> list[str]:
    """What must be on the cluster, and what could therefore not be checked."""
    lines = [
        f"{setting}={path} is not sent: absolute paths are the cluster's"
        for setting, path in checked.bundle.absolute.items()
    ]
    if checked.elsewhere:
        lines.append(f"{', '.join(checked.elsewhere)}: not on this machine; the cluster checks data and model first")
    return lines

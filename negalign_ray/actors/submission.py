"""`negalign-ray submit`: a run is checked and packed here, and trained on a cluster that this machine is no node of."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from negalign_ray.actors.jobs import PROGRAM, Jobs, jobs_of_run, refusals, submit_run
from negalign_ray.actors.locate import require_idle
from negalign_ray.actors.plan import make_plan
from negalign_ray.actors.plan_checks import check_checkpoints
from negalign_ray.config import Config, HeadConfig
from negalign_ray.errors import RunExistsError
from negalign_ray.rewards.json_post import check_url
from negalign_ray.settings import load_config
from negalign_ray.settings.bundle import CONFIG_FILE, INPUTS, Bundle, make_bundle, relocated
from negalign_ray.settings.run_dir import require_new

COMMAND = "train-submitted"  # of the command line there


@dataclass(frozen=True, slots=True)
class Checked:
    bundle: Bundle
    elsewhere: dict[str, Path]  # settings whose files only the cluster has, so that only the cluster can check them


def check(config: Config, *, include: Sequence[Path] = (), limit_bytes: int) -> Checked:
    """All that a dry run checks, unless files are missing that are on the cluster; then what the settings alone say.

    The cluster checks everything once more before it starts anything.
    """
    heads = (*config.scorers.heads, *config.evaluation.heads)
    for head in heads:
        if head.kind == "http":
            check_url(head.target, where=f"head {head.name!r}: target")
    if config.evaluation.judge is not None:
        check_url(config.evaluation.judge.url, where="evaluation.judge.url")
    check_checkpoints(config.checkpoints)
    bundle = make_bundle(config, include=include, limit_bytes=limit_bytes)
    elsewhere = {setting: path for setting, path in bundle.absolute.items() if not path.exists()}
    if not elsewhere:
        make_plan(_without_keys(config))
    return Checked(bundle, elsewhere)


def _without_keys(config: Config) -> Config:
    """The keys of services are in the environment of the cluster, not in the one here."""

    def stripped(heads: Sequence[HeadConfig]) -> tuple[HeadConfig, ...]:
        return tuple(head.model_copy(update=no_key) for head in heads)

    no_key, judge = {"token_env": None}, config.evaluation.judge
    return config.model_copy(
        update={
            "scorers": config.scorers.model_copy(update={"heads": stripped(config.scorers.heads)}),
            "evaluation": config.evaluation.model_copy(
                update={"heads": stripped(config.evaluation.heads), "judge": judge and judge.model_copy(update=no_key)}
            ),
        }
    )


def submit(jobs: Jobs, bundle: Bundle, *, address: str) -> str:
    """The job's id. RunExistsError when a run of this name has been submitted and has not ended."""
    name = bundle.config.run.name
    with refusals(address):
        for job in jobs_of_run(jobs, name):
            if not job.status.is_terminal():
                raise RunExistsError(
                    f"run.name={name}: a run of this name goes on in that cluster (job {job.submission_id}). Choose "
                    f"another one by --set run.name=NAME, or end it by `{PROGRAM} stop {name} --address {address}`."
                )
        with tempfile.TemporaryDirectory(prefix="negalign-") as folder:
            bundle.write(Path(folder))
            return submit_run(jobs, name, Path(folder), entrypoint=f"{PROGRAM} {COMMAND}")


# -- on the cluster --------------------------------------------------------------------------------------------


def unpack(folder: Path, *, home: Path) -> Config:
    """The settings of a bundle in `folder`, with its inputs moved into the run directory.

    A relative run.dir lies in `home`: the folder that a job runs in is deleted after it. ConfigError when the run
    directory holds a run already.
    """
    config = load_config(file=folder / CONFIG_FILE)
    folder_of_runs = home / str(config.run.dir).removeprefix("~/")  # an absolute one stays what it is
    place = config.run.model_copy(update={"dir": folder_of_runs})
    config = config.model_copy(update={"run": place})
    require_idle(config.run_dir)
    require_new(config)
    target = config.run_dir / INPUTS
    shutil.rmtree(target, ignore_errors=True)
    if (folder / INPUTS).is_dir():
        shutil.copytree(folder / INPUTS, target)
    return relocated(config, config.run_dir)

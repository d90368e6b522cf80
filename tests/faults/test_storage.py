"""A full disk at a checkpoint, and a full object store."""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from negalign_ray.actors.resume import find_checkpoint
from negalign_ray.actors.run import resume, train
from negalign_ray.errors import NegalignError
from negalign_ray.settings import dump_config
from tests.faults.harness import Scene, require_sound, run_alone, sabotage

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 64 MiB of its own; mounting one needs root. Its path is short, as Ray's sockets need it."""
    folder = Path(tempfile.mkdtemp(prefix="disk-"))
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        folder.rmdir()
        pytest.skip(f"mounting a small file system needs root: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


def fill(disk: Path, *, leave_bytes: int) -> Path:
    """A file that takes all but `leave_bytes`."""
    space = os.statvfs(disk)
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - leave_bytes)
    return filler


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("leave_bytes", "error"),
    [
        (512 * 1024, r"CheckpointError: .*checkpoint of step \d could not be written.*No space left.*free some space"),
        (0, r"(CheckpointError|RoleError|StorageError): .*No space left"),
    ],
    ids=["no room for a checkpoint", "no room for a line"],
)
def test_a_disk_that_fills_up_ends_the_run_and_the_checkpoint_before_is_whole(
    toy_config, small_disk, report, leave_bytes, error
):
    config = toy_config(f"run.dir={small_disk}", "learners.steps=6", "checkpoints.every=1", "checkpoints.keep_last=3")

    def strike(scene: Scene) -> None:
        scene.wait_until((config.run_dir / "manifest.json").is_file)
        fill(small_disk, leave_bytes=leave_bytes)

    with sabotage(config, strike) as saboteur, pytest.raises(NegalignError) as caught:
        train(config)
    seconds = saboteur.seconds_since()
    assert re.search(error, f"{type(caught.value).__name__}: {caught.value}")
    assert "--resume" in caught.value.__notes__[0]
    (small_disk / "filler").unlink()
    again = find_checkpoint(config.run_dir)
    assert again.checkpoint.faults() == []
    summary = resume(again)
    require_sound(config, summary)
    fault = "disk full at a checkpoint" if leave_bytes else "disk full to the last byte"
    report(fault, ended="error, resumed", seconds=seconds, config=config)


def test_an_object_store_that_is_full_spills_to_the_disk_and_the_run_goes_on(toy_config, tmp_path, report):
    config = toy_config()
    (tmp_path / "config.yaml").write_text(dump_config(config))
    told = run_alone("full_store", "spill", tmp_path / "config.yaml")
    require_sound(config, told["summary"])
    report("object store full", ended="goes on", seconds=None, config=config, summary=told["summary"])


def test_an_object_store_that_is_full_on_a_full_disk_ends_the_run_with_the_role_that_met_it(
    toy_config, tmp_path, small_disk, report
):
    config = toy_config("learners.steps=500", "guards.enabled=false")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    told = run_alone("full_store", "full", tmp_path / "config.yaml", small_disk)
    assert told["role"] in {"learner", "sampler", "scorer", "reference", "conductor"}
    assert "OutOfDisk" in told["error"] or "disk" in told["error"].lower()
    report("object store and its disk full", ended="error", seconds=told["seconds"], config=config)

"""The checkpoint store: whenever a run dies, and whatever happens to its files, an intact checkpoint is found."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negalign_ray.config import CheckpointsConfig
from negalign_ray.engines.checkpoints import CheckpointStore, kept_of, read_checkpoint
from negalign_ray.engines.durable import LocalDisk, inside, write_json
from negalign_ray.errors import CheckpointError


class Died(BaseException):
    """A crash: nothing after it runs."""


@dataclass
class MortalDisk:
    """Dies at operation number `dies_at`; `torn`: a write that it dies in leaves half of the file."""

    dies_at: int
    torn: bool = False
    done: list[str] = field(default_factory=list)
    disk: LocalDisk = field(default_factory=LocalDisk)

    def _live(self, what: str) -> None:
        if len(self.done) == self.dies_at:
            raise Died
        self.done.append(what)

    def write(self, path: Path, content: bytes) -> None:
        if self.torn and len(self.done) == self.dies_at:
            path.write_bytes(content[: len(content) // 2])
        self._live(f"write {path.name}")
        self.disk.write(path, content)

    def sync(self, path: Path) -> None:
        self._live(f"sync {path.name}")

    def rename(self, old: Path, new: Path) -> None:
        self._live(f"rename {new.name}")
        self.disk.rename(old, new)

    def remove(self, folder: Path) -> None:
        if self.torn and len(self.done) == self.dies_at:
            for path in list(folder.rglob("*.bin"))[:1]:
                path.unlink()
        self._live(f"remove {folder.name}")
        self.disk.remove(folder)


def store(run_dir: Path, *, disk=None, **settings) -> CheckpointStore:
    return CheckpointStore(run_dir, CheckpointsConfig(**settings), disk=disk)


def save(target: CheckpointStore, step: int, *, metric: float | None = None, run: str | None = None):
    folder = target.begin(step)
    (folder / "learner").mkdir()
    (folder / "learner" / "weights.bin").write_bytes(bytes([step]) * 100)
    (folder / "rollout.json").write_text(f'{{"step": {step}}}')
    return target.commit(step, metric=metric, info={"seed": 7, "run": run})


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_a_checkpoint_reads_back_as_it_was_written(tmp_path):
    written = save(store(tmp_path), 12, metric=0.5)
    [found] = store(tmp_path).checkpoints()
    assert found == written
    assert (found.step, found.metric, found.info) == (12, 0.5, {"seed": 7, "run": None})
    assert set(found.files) == {"learner/weights.bin", "rollout.json"}
    assert found.files["learner/weights.bin"]["bytes"] == 100
    assert store(tmp_path).newest_intact() == written
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["step"], manifest["checkpoint"]) == (12, "checkpoints/step-00000012")


def test_a_new_run_has_no_checkpoint():
    assert store(Path("nowhere")).newest_intact() is None


def operations_of_a_save(run_dir: Path) -> int:
    disk = MortalDisk(dies_at=10**6)
    save(store(run_dir, disk=disk, keep_last=1), 1)
    disk.done.clear()
    save(store(run_dir, disk=disk, keep_last=1), 2)
    return len(disk.done)


@pytest.mark.parametrize("torn", [False, True])
def test_a_crash_at_any_point_leaves_the_checkpoint_before_or_this_one(tmp_path, torn):
    found_steps = []
    for dies_at in range(operations_of_a_save(tmp_path / "probe")):
        run_dir = tmp_path / str(dies_at)
        save(store(run_dir, keep_last=1), 1)
        with pytest.raises(Died):
            save(store(run_dir, keep_last=1, disk=MortalDisk(dies_at, torn=torn)), 2)
        found = store(run_dir, keep_last=1).newest_intact()
        assert found is not None, f"operation {dies_at}"
        assert (found.path / "learner" / "weights.bin").read_bytes() == bytes([found.step]) * 100
        found_steps.append(found.step)
        store(run_dir).discard_after(found.step)
        assert names(run_dir) == [found.path.name] or found.step == 2, "nothing unfinished stays"
        save(store(run_dir, keep_last=1), 3)
        assert names(run_dir) == ["step-00000003"]
    assert found_steps[0] == 1
    assert found_steps[-1] == 2
    assert found_steps == sorted(found_steps)
    assert len(found_steps) >= 8


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])  # a line break alone would be no loss


@pytest.mark.parametrize("damage", [flip_a_bit, cut, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", ["learner/weights.bin", "rollout.json", "manifest.json"])
def test_a_damaged_file_is_noticed_and_the_checkpoint_before_it_is_used(tmp_path, caplog, damage, name):
    for step in (10, 20):
        save(store(tmp_path), step)
    damage(tmp_path / "checkpoints" / "step-00000020" / name)
    found = store(tmp_path).newest_intact()
    assert found is not None
    assert found.step == 10
    assert "step-00000020" in caplog.text


def test_when_every_checkpoint_is_torn_the_error_says_so_instead_of_starting_anew(tmp_path):
    save(store(tmp_path), 10)
    cut(tmp_path / "checkpoints" / "step-00000010" / "rollout.json")
    with pytest.raises(
        CheckpointError, match=r"none of the 1 checkpoints .* is intact.*step-00000010 is torn: rollout\.json has"
    ):
        store(tmp_path).newest_intact()


@settings(max_examples=40)
@given(position=st.integers(0, 10**6), bit=st.integers(0, 7), name=st.sampled_from(["weights", "rollout", "manifest"]))
def test_no_flipped_bit_goes_unnoticed(tmp_path_factory, position, bit, name):
    run_dir = tmp_path_factory.mktemp("run")
    checkpoint = save(store(run_dir), 5)
    path = next(path for path in checkpoint.path.rglob("*") if path.name.startswith(name))
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1 << bit
    path.write_bytes(bytes(content))
    try:
        again = read_checkpoint(checkpoint.path)
    except CheckpointError:
        return
    assert again.faults() or again == checkpoint, "white space of the manifest may change"


def test_the_newest_stay_and_the_best_one_too(tmp_path):
    target = store(tmp_path, keep_last=2, keep_best="learner/loss")
    for step, loss in ((1, 0.5), (2, 0.25), (3, 0.75), (4, 0.25), (5, None)):
        save(target, step, metric=loss)
    assert names(tmp_path) == ["step-00000002", "step-00000004", "step-00000005"]
    highest = CheckpointsConfig(keep_last=1, keep_best="x", best_is="highest")
    assert [kept.step for kept in kept_of(target.checkpoints(), highest)] == [2, 5]
    assert [kept.step for kept in kept_of(target.checkpoints(), CheckpointsConfig(keep_last=1))] == [5]


def test_the_newest_before_a_step_is_what_a_roll_back_goes_to(tmp_path):
    target = store(tmp_path, keep_last=9)
    for step in (10, 20, 30):
        save(target, step)
    cut(tmp_path / "checkpoints" / "step-00000020" / "rollout.json")
    assert [getattr(target.newest_before(step), "step", None) for step in (9, 10, 25, 30)] == [None, 10, 10, 30]


def test_a_run_that_is_stopped_where_it_was_resumed_keeps_what_it_has(tmp_path):
    first = save(store(tmp_path), 10)
    assert save(store(tmp_path), 10) == first
    assert names(tmp_path) == ["step-00000010"]


def test_going_on_from_a_step_deletes_what_is_newer(tmp_path):
    for step in (10, 20):
        save(store(tmp_path), step)
    store(tmp_path).begin(30)
    store(tmp_path).discard_after(10)
    assert names(tmp_path) == ["step-00000010"]
    store(tmp_path).clear()
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", "a\\..\\x", "link/x"])
def test_names_that_lead_out_of_the_run_are_refused(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match="leads out of"):
        inside(tmp_path / "run", name)
    assert inside(tmp_path / "run", "a/b.bin") == tmp_path / "run" / "a" / "b.bin"


def test_a_manifest_with_such_names_or_of_another_format_is_no_checkpoint(tmp_path):
    checkpoint = save(store(tmp_path), 10)
    manifest = json.loads((checkpoint.path / "manifest.json").read_text())

    def rewrite(**changed):
        body = {key: value for key, value in (manifest | changed).items() if key != "checksum"}
        checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        write_json(checkpoint.path / "manifest.json", body | {"checksum": checksum}, disk=LocalDisk())

    rewrite(files={"../../secret": {"sha256": "0", "bytes": 1}})
    with pytest.raises(CheckpointError, match=r"leads out of"):
        read_checkpoint(checkpoint.path)
    rewrite(format=99)
    with pytest.raises(CheckpointError, match="format 99, this program reads 1"):
        read_checkpoint(checkpoint.path)
    rewrite(step=11)
    with pytest.raises(CheckpointError, match="not what was written"):
        read_checkpoint(checkpoint.path)
    rewrite()
    assert read_checkpoint(checkpoint.path) == checkpoint


def test_a_json_file_is_the_old_or_the_new_one_whenever_the_writer_dies(tmp_path):
    path = tmp_path / "manifest.json"
    write_json(path, {"step": 1}, disk=LocalDisk())
    for dies_at in range(3):
        for torn in (False, True):
            with pytest.raises(Died):
                write_json(path, {"step": 2}, disk=MortalDisk(dies_at, torn=torn))
            assert json.loads(path.read_text())["step"] == (2 if dies_at == 2 else 1)
            write_json(path, {"step": 1}, disk=LocalDisk())

"""Copies of checkpoints elsewhere: complete or ignored, within a deadline, and never at the cost of the local one."""

import threading
import time
import uuid
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from negalign_ray.engines.uploads import Uploader, download_newest, open_remote
from negalign_ray.errors import CheckpointError, ConfigError, UploadError
from tests.engines.test_checkpoints import names, save, store


@pytest.fixture
def bucket() -> tuple[MemoryFileSystem, str]:
    return MemoryFileSystem(), f"/bucket/{uuid.uuid4().hex}"  # memory file systems share one memory


class Dead(MemoryFileSystem):
    cachable = False

    def put_file(self, lpath, rpath, **settings):
        raise PermissionError("no right to write")


class Stuck(MemoryFileSystem):
    """Nothing arrives before the test is over."""

    cachable = False

    def __init__(self):
        super().__init__()
        self.over = threading.Event()

    def put_file(self, lpath, rpath, **settings):
        self.over.wait(60)


class Torn(MemoryFileSystem):
    """Dies when half of the files have arrived."""

    cachable = False

    def put_file(self, lpath, rpath, **settings):
        if rpath.endswith(("rollout.json", "manifest.json")):
            raise ConnectionResetError("connection reset")
        super().put_file(lpath, rpath, **settings)


def uploader(remote, path, *, run=None, deadline_s=60.0) -> Uploader:
    return Uploader(remote, path, run_id=run, deadline_s=deadline_s)


def download(remote, path, target, *, refuse=lambda copy: None, deadline_s=60.0):
    return download_newest(remote, path, target, refuse=refuse, deadline_s=deadline_s)


def test_what_was_uploaded_can_be_downloaded_into_an_empty_run(tmp_path, bucket):
    written = save(store(tmp_path / "here"), 12)
    up = uploader(*bucket)
    up.upload(written, keep=[written])
    up.finish()
    assert up.errors == []
    found = download(*bucket, store(tmp_path / "there"))
    assert found is not None
    assert (found.step, found.files, found.faults()) == (12, written.files, [])
    assert store(tmp_path / "there").newest_intact() == found


def test_the_other_place_keeps_what_the_run_keeps(tmp_path, bucket):
    target, up = store(tmp_path, keep_last=2), uploader(*bucket)
    for step in (1, 2, 3):
        up.upload(save(target, step), keep=target.checkpoints())
        up.finish()
    assert folders(*bucket) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize(("kind", "said"), [(Dead, "no right to write"), (Torn, "connection reset")])
def test_a_failed_upload_is_a_typed_error_and_the_local_copy_is_complete(tmp_path, bucket, kind, said):
    written, up = save(store(tmp_path), 12), uploader(kind(), bucket[1])
    up.upload(written, keep=[written])
    up.finish()
    [error] = up.errors
    assert isinstance(error, UploadError)
    assert said in str(error)
    assert "local copy is complete" in str(error)
    assert store(tmp_path).newest_intact() == written
    assert download(kind(), bucket[1], store(tmp_path / "there")) is None, "without a manifest it is no copy"


def test_an_upload_that_hangs_is_given_up_at_its_deadline(tmp_path, bucket):
    remote = Stuck()
    written, up = save(store(tmp_path), 12), uploader(remote, bucket[1], deadline_s=0.05)
    started = time.monotonic()
    up.upload(written, keep=[written])
    assert time.monotonic() - started < 20.0, "the run goes on at once"
    up.finish()
    remote.over.set()
    assert time.monotonic() - started < 30.0
    [error] = up.errors
    assert "step-00000012 took longer than deadlines.upload_s=0.05 s" in str(error)
    assert store(tmp_path).newest_intact() == written


class Slow(MemoryFileSystem):
    """The first file arrives when the test says so."""

    cachable = False

    def __init__(self):
        super().__init__()
        self.go_on = threading.Event()

    def put_file(self, lpath, rpath, **settings):
        self.go_on.wait(60)
        super().put_file(lpath, rpath, **settings)


def test_a_slow_place_gets_the_newest_when_it_is_ready_and_what_it_reads_stays_where_it_is(tmp_path, bucket):
    remote = Slow()
    target, up = store(tmp_path, keep_last=1), uploader(remote, bucket[1])
    started = time.monotonic()
    for step in (1, 2, 3):
        folder = target.begin(step)
        (folder / "rollout.json").write_text(str(step))
        checkpoint = target.commit(step, in_use=up.busy_with)
        up.upload(checkpoint, keep=[checkpoint])
    assert time.monotonic() - started < 20.0, "no step waits for a copy"
    assert names(tmp_path) == ["step-00000001", "step-00000003"], "1 is being copied, 2 has been replaced by 3"
    remote.go_on.set()
    up.finish()
    assert up.errors == []
    assert [Path(entry["name"]).name for entry in remote.ls(bucket[1])] == ["step-00000003"]
    assert up.busy_with is None


class HoldsBack(MemoryFileSystem):
    """Files of the folder `late` arrive when the test says so."""

    cachable = False

    def __init__(self, late: str):
        super().__init__()
        self.late, self.go_on = late, threading.Event()

    def put_file(self, lpath, rpath, **settings):
        if self.late in rpath:
            self.go_on.wait(60)
        super().put_file(lpath, rpath, **settings)


def folders(remote, path) -> list[str]:
    return sorted(Path(entry["name"]).name for entry in remote.ls(path))


def test_an_upload_that_was_given_up_deletes_nothing_and_copies_no_further_file_when_it_goes_on(tmp_path, bucket):
    remote, path = HoldsBack("step-00000010"), bucket[1]
    target, up = store(tmp_path / "here"), uploader(remote, path, deadline_s=0.05)
    up.upload(save(target, 10), keep=[])
    [late] = [thread for thread in threading.enumerate() if thread.name == "upload step-00000010"]
    up.finish()
    up._deadline_s = 60.0
    up.upload(save(target, 20), keep=[])
    up.finish()
    remote.go_on.set()
    late.join(60)
    found = download(remote, path, store(tmp_path / "there"))
    assert found is not None
    assert found.step == 20
    assert not remote.exists(f"{path}/step-00000010/manifest.json")
    assert len(up.errors) == 1, "it was given up, which is said once"
    up.upload(save(target, 30), keep=[])
    up.finish()
    assert folders(remote, path) == ["step-00000030"], "the next one clears up what it has left"


def upload_of(run: str, folder, remote, path, *steps: int) -> Uploader:
    target, up = store(folder, keep_last=9), uploader(remote, path, run=run)
    for step in steps:
        up.upload(save(target, step, run=run), keep=target.checkpoints())
        up.finish()
    assert up.errors == []
    return up


def of(run: str):
    return lambda copy: None if copy.info["run"] == run else "another run of this name has written it"


def test_copies_of_later_steps_go_when_the_run_has_gone_back_and_those_of_another_run_stay(tmp_path, bucket):
    upload_of("other", tmp_path / "other", *bucket, 40)
    upload_of("mine", tmp_path / "here", *bucket, 10, 30)
    upload_of("mine", tmp_path / "again", *bucket, 20)  # in a folder that has no 30: it was resumed at 10
    assert folders(*bucket) == ["step-00000020", "step-00000040"]


def test_a_run_that_overwrites_another_is_never_resumed_from_its_copies(tmp_path, bucket):
    upload_of("first", tmp_path / "first", *bucket, 10, 20)
    with pytest.raises(CheckpointError, match=r"none of the 2 copies .* can be used.*step-00000020: another run of"):
        download(*bucket, store(tmp_path / "lost"), refuse=of("second"))
    upload_of("second", tmp_path / "second", *bucket, 5)
    found = download(*bucket, store(tmp_path / "lost"), refuse=of("second"))
    assert found is not None
    assert (found.step, found.info["run"]) == (5, "second")
    assert names(tmp_path / "lost") == ["step-00000005"], "what was refused has left nothing"


def test_a_copy_takes_the_place_of_another_runs_copy_of_that_step_and_is_never_mixed_with_it(tmp_path, bucket):
    upload_of("first", tmp_path / "first", *bucket, 10)
    up = uploader(Torn(), bucket[1], run="second")
    up.upload(save(store(tmp_path / "second"), 10, run="second"), keep=[])
    up.finish()
    assert len(up.errors) == 1
    assert not bucket[0].exists(f"{bucket[1]}/step-00000010/manifest.json"), "half of each is no checkpoint"
    upload_of("second", tmp_path / "third", *bucket, 10)
    found = download(*bucket, store(tmp_path / "there"))
    assert found is not None
    assert found.info["run"] == "second"


def test_after_a_roll_back_there_are_no_copies_of_later_steps(tmp_path, bucket):
    upload_of("other", tmp_path / "other", *bucket, 40)
    up = upload_of("mine", tmp_path / "here", *bucket, 10, 20, 30)
    up.discard_after(10)
    up.finish()
    assert up.errors == []
    assert folders(*bucket) == ["step-00000010", "step-00000040"]
    found = download(*bucket, store(tmp_path / "there"), refuse=of("mine"))
    assert found is not None
    assert found.step == 10


def test_a_copy_that_is_on_its_way_when_the_run_goes_back_does_not_stay(tmp_path, bucket):
    remote, path = HoldsBack("step-00000030"), bucket[1]
    target, up = store(tmp_path), upload_of("mine", tmp_path / "here", remote, path, 10)
    for step in (30, 40):  # 40 waits for 30
        up.upload(save(target, step, run="mine"), keep=target.checkpoints())
    up.discard_after(10)
    assert up.busy_with is None, "the checkpoint may be deleted here"
    remote.go_on.set()
    up.finish()
    found = download(remote, path, store(tmp_path / "there"), refuse=of("mine"))
    assert found is not None
    assert found.step == 10


def test_copies_that_cannot_be_deleted_are_a_typed_error_and_end_nothing(tmp_path, bucket):
    up = upload_of("mine", tmp_path, *bucket, 10, 20)

    class Kept(MemoryFileSystem):
        cachable = False

        def rm(self, path, **settings):
            raise PermissionError("no right to delete")

    up._remote = Kept()
    up.discard_after(10)
    up.finish()
    [error] = up.errors
    assert "copies of later steps than 10 could not be deleted" in str(error)
    assert "no right to delete" in str(error)


def test_the_next_checkpoint_is_tried_again_after_a_failure(tmp_path, bucket):
    target, up = store(tmp_path), uploader(Dead(), bucket[1])
    up.upload(save(target, 1), keep=target.checkpoints())
    up.finish()
    up._remote = bucket[0]
    up.upload(save(target, 2), keep=target.checkpoints())
    up.finish()
    assert len(up.errors) == 1
    found = download(*bucket, store(tmp_path / "there"))
    assert found is not None
    assert found.step == 2


def upload_steps(folder, remote, path, *steps: int) -> None:
    target, up = store(folder), uploader(remote, path)
    for step in steps:
        up.upload(save(target, step), keep=target.checkpoints())
        up.finish()


@pytest.mark.parametrize("name", ["rollout.json", "manifest.json"])
def test_a_torn_copy_is_passed_over_for_the_one_before(tmp_path, bucket, name):
    upload_steps(tmp_path / "here", *bucket, 1, 2)
    remote, path = bucket
    remote.pipe_file(f"{path}/step-00000002/{name}", b"{}")
    found = download(remote, path, store(tmp_path / "there"))
    assert found is not None
    assert found.step == 1
    assert names(tmp_path / "there") == ["step-00000001"]


def test_a_copy_that_lacks_a_file_is_passed_over_and_if_all_do_it_is_an_error(tmp_path, bucket):
    upload_steps(tmp_path / "here", *bucket, 1, 2)
    remote, path = bucket
    remote.rm(f"{path}/step-00000002/rollout.json")
    found = download(remote, path, store(tmp_path / "there"))
    assert found is not None
    assert found.step == 1
    remote.rm(f"{path}/step-00000001/rollout.json")
    with pytest.raises(CheckpointError, match=r"none of the 2 copies .* can be used.*step-00000002: a file is missing"):
        download(remote, path, store(tmp_path / "elsewhere"))
    assert names(tmp_path / "elsewhere") == []


class Unreliable(MemoryFileSystem):
    """The connection is lost at the second file that is fetched."""

    cachable = False

    def __init__(self):
        super().__init__()
        self.fetched = 0

    def get_file(self, rpath, lpath, **settings):
        self.fetched += 1
        if self.fetched == 2:
            raise ConnectionResetError("connection reset")
        super().get_file(rpath, lpath, **settings)


def test_an_interrupted_download_leaves_no_checkpoint_and_can_be_repeated(tmp_path, bucket):
    upload_steps(tmp_path / "here", *bucket, 1, 2)
    remote, there = Unreliable(), store(tmp_path / "there")
    with pytest.raises(CheckpointError, match=r"checkpoints\.url\) could not be fetched: ConnectionResetError"):
        download(remote, bucket[1], there)
    assert there.newest_intact() is None, "not a torn one either, which would be an error"
    found = download(remote, bucket[1], there)
    assert found is not None
    assert found.step == 2, "a lost connection says nothing about the copy"
    assert names(tmp_path / "there") == ["step-00000002"]


@pytest.mark.parametrize("call", ["exists", "ls", "get_file"])
def test_a_place_that_does_not_answer_is_given_up_at_the_deadline(tmp_path, bucket, call):
    upload_steps(tmp_path / "here", *bucket, 1)
    over = threading.Event()
    remote = type("Silent", (MemoryFileSystem,), {"cachable": False, call: lambda *_, **__: over.wait(60)})()
    with pytest.raises(CheckpointError, match=r"within deadlines\.upload_s=0\.05 s"):
        download(remote, bucket[1], store(tmp_path / "there"), deadline_s=0.05)
    over.set()
    assert store(tmp_path / "there").newest_intact() is None


def test_a_copy_takes_the_place_of_a_torn_checkpoint_of_its_step(tmp_path, bucket):
    upload_steps(tmp_path, *bucket, 1, 2)
    for name in names(tmp_path):
        (tmp_path / "checkpoints" / name / "rollout.json").write_text("torn")
    found = download(*bucket, store(tmp_path))
    assert found is not None
    assert store(tmp_path).newest_intact() == found
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_an_empty_place_holds_no_checkpoint(tmp_path, bucket):
    assert download(*bucket, store(tmp_path)) is None


def test_any_folder_or_url_that_fsspec_knows_will_do(tmp_path):
    written = save(store(tmp_path / "here"), 3)
    for url in (str(tmp_path / "folder"), f"file://{tmp_path}/other", f"memory://{uuid.uuid4().hex}"):
        remote, path = open_remote(url)
        up = uploader(remote, path)
        up.upload(written, keep=[written])
        up.finish()
        assert up.errors == []
        assert download(remote, path, store(tmp_path / uuid.uuid4().hex)) is not None


def test_an_unknown_scheme_or_a_password_in_the_url_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match=r"checkpoints\.url=nosuch://x cannot be opened"):
        open_remote("nosuch://x")
    with pytest.raises(ConfigError, match="holds a password") as refused:
        open_remote("sftp://me:hunter2@host/x")
    assert "hunter2" not in str(refused.value)

"""Which run, in which cluster: what a run directory, a name and the environment say together."""

import os
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from negalign_ray.actors.locate import (
    FILE_NAME,
    Location,
    Meeting,
    locate,
    namespace_of,
    read_meeting,
    require_idle,
    run_of,
    write_meeting,
)
from negalign_ray.errors import ConfigError


def a_run(folder, address: str | None = None, **more):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("")
    if address:
        write_meeting(folder, meeting(address, **more))
    return folder


def meeting(address: str, *, pid: int = 1, host: str = "elsewhere") -> Meeting:
    return Meeting(address=address, pid=pid, host=host, started_at="2026-11-22T21:00:00+00:00")


@contextmanager
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_the_cluster_of_a_run_directory_is_the_one_that_it_names(tmp_path):
    folder = a_run(tmp_path / "d2o", "10.0.0.1:6379")
    environment = {"RAY_ADDRESS": "10.0.0.2:6379"}
    assert locate(str(folder), environment=environment).address == "10.0.0.1:6379"
    assert locate(str(folder), "10.0.0.3:6379", environment=environment).address == "10.0.0.3:6379"


def test_a_name_is_looked_for_in_the_cluster_of_the_environment_else_where_runs_are_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate("d2o", environment={}) == Location("d2o", "auto", None)
    folder = a_run(tmp_path / "runs" / "d2o", "10.0.0.1:6379", pid=os.getpid(), host=socket.gethostname())
    assert locate("d2o", environment={}) == Location("d2o", "10.0.0.1:6379", folder)
    environment = {"RAY_ADDRESS": "10.0.0.2:6379"}
    assert locate("d2o", environment=environment) == Location("d2o", "10.0.0.2:6379", folder)


def test_a_run_is_over_when_its_folder_alone_is_known_and_says_so(tmp_path):
    finished, killed = a_run(tmp_path / "finished"), a_run(tmp_path / "killed", "127.0.0.1:1")
    assert locate(str(finished), environment={}).has_ended
    assert locate(str(killed), environment={}).has_ended
    environment = {"RAY_ADDRESS": "10.0.0.2:6379"}
    assert locate(str(finished), environment=environment) == Location("finished", "10.0.0.2:6379", finished)
    assert not locate(str(killed), "10.0.0.3:6379", environment={}).has_ended


@pytest.mark.parametrize("run", ["../../x", "/etc", "a b", "", ".hidden", "d2o\n"])
def test_what_is_neither_a_run_directory_nor_a_name_is_refused(run):
    with pytest.raises(ConfigError, match=r"neither a run directory .* nor the name of a run"):
        locate(run, environment={})


def test_every_run_has_a_namespace_of_its_own():
    assert namespace_of("a") != namespace_of("b")
    assert run_of(namespace_of("my.run-2")) == "my.run-2"
    assert run_of("negalign/") is None
    assert run_of("somebody else's") is None


def test_a_torn_file_says_as_much_as_none(tmp_path):
    write_meeting(tmp_path, meeting("10.0.0.1:6379"))
    assert read_meeting(tmp_path) == meeting("10.0.0.1:6379")
    text = (tmp_path / FILE_NAME).read_text()
    (tmp_path / FILE_NAME).write_text(text[:20])
    assert read_meeting(tmp_path) is None
    (tmp_path / FILE_NAME).write_text('{"address": "10.0.0.1:6379"}')
    assert read_meeting(tmp_path) is None


def test_a_folder_whose_run_goes_on_here_is_not_idle(tmp_path):
    require_idle(tmp_path)
    write_meeting(tmp_path, meeting("10.0.0.1:6379", pid=os.getpid(), host=socket.gethostname()))
    with pytest.raises(ConfigError, match=rf"process {os.getpid()} on .*negalign-ray stop"):
        require_idle(tmp_path)


def test_a_folder_whose_driver_was_killed_is_idle(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    write_meeting(tmp_path, meeting("10.0.0.1:6379", pid=child.pid, host=socket.gethostname()))
    require_idle(tmp_path)


def test_a_folder_whose_run_is_on_another_machine_is_idle_when_that_cluster_is_gone(tmp_path):
    with listener() as address:
        write_meeting(tmp_path, meeting(address))
        with pytest.raises(ConfigError, match="on elsewhere"):
            require_idle(tmp_path)
    require_idle(tmp_path)

"""What `attach` says when there is no cluster, no run, or no answer. The cluster itself: test_attach_real.py."""

import socket

import pytest
from ray.exceptions import ActorDiedError, AuthenticationError, GetTimeoutError

from negalign_ray.actors.attach import RunHandle, attach, ended, join_error, joined
from negalign_ray.actors.locate import Location
from negalign_ray.errors import ClusterError, RunEndedError, StallError, TokenError
from tests.actors.test_overview import OVERVIEW

HERE = Location("d2o", "10.0.0.1:6379")


class FakeMethod:
    def __init__(self, name: str, answer) -> None:
        self._name, self._answer = name, answer

    def remote(self, *arguments):
        return (self._name, arguments, self._answer)


class FakeConductor:
    """Every method answers with its name and arguments, or raises what it was told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def __getattr__(self, name: str) -> FakeMethod:
        return FakeMethod(name, self._error)


def get(reference, *, timeout: float):
    name, arguments, error = reference
    if error is not None:
        raise error
    return name, arguments, timeout


def test_calls_reach_the_conductor_with_a_deadline():
    run = RunHandle(HERE, FakeConductor(), deadline_s=7, get=get)
    assert run.logs.read("sampler-0", 12) == ("read_log", ("sampler-0", 12), 7)
    assert run.scale("sampler", 4, deadline_s=300) == ("scale", ("sampler", 4), 300)


def test_a_wish_for_more_is_waited_for_as_long_as_the_run_itself_waits_for_room():
    def answer(reference, *, timeout: float):
        name, arguments, _ = reference
        return 60.0 if name == "place_s" else (name, arguments, timeout)

    run = RunHandle(HERE, FakeConductor(), deadline_s=7, get=answer)
    assert run.scale("sampler", 4) == ("scale", ("sampler", 4), 67.0)


def test_a_run_that_ends_while_one_looks_is_told_with_the_folder_that_it_had_named():
    answers = iter([OVERVIEW, ActorDiedError()])

    def next_answer(reference, *, timeout):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    run = RunHandle(HERE, FakeConductor(), get=next_answer)
    assert run.status() is OVERVIEW
    with pytest.raises(RunEndedError, match=r"its results are in /shared/runs/d2o, on its cluster"):
        run.status()


def test_no_answer_in_time_is_a_stall_that_names_the_run():
    run = RunHandle(HERE, FakeConductor(GetTimeoutError("late")), deadline_s=7, get=get)
    with pytest.raises(StallError, match=r"conductor\[0\]: run d2o: no answer to 'overview' within 7 s"):
        run.status()


def test_a_conductor_that_is_gone_means_that_the_run_has_ended(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    location = Location("d2o", "auto", tmp_path)
    with pytest.raises(RunEndedError, match=f"its results are in {tmp_path}"):
        RunHandle(location, FakeConductor(ActorDiedError()), get=get).status()


def test_a_run_without_a_summary_was_cut_short_and_can_go_on(tmp_path):
    assert f"train --resume {tmp_path}" in str(ended(Location("d2o", "auto", tmp_path)))


def test_a_run_directory_of_a_run_that_is_over_needs_no_cluster(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(RunEndedError, match="has ended"), attach(str(tmp_path)):
        pass


def test_an_address_where_nobody_listens_is_told_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(ClusterError, match=rf"no cluster at {address} .*refused.*--address"), joined(address):
        pass


@pytest.mark.parametrize("address", ["nonsense", "host:", "host:name"])
def test_what_is_no_address_is_told_at_once(address):
    with pytest.raises(ClusterError, match=f"no cluster at {address}"), attach("d2o", address):
        pass


def test_a_refused_token_is_told_without_the_token(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "not-a-real-secret")
    error = join_error(AuthenticationError("Token authentication is enabled but ..."), "10.0.0.1:6379")
    assert isinstance(error, TokenError)
    assert "10.0.0.1:6379" in str(error)
    assert "that of RAY_AUTH_TOKEN is another one" in str(error)
    assert "not-a-real-secret" not in str(error)
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert "RAY_AUTH_MODE is not set" in str(join_error(AuthenticationError("..."), "10.0.0.1:6379"))


def test_a_machine_outside_the_cluster_is_pointed_to_the_dashboard():
    error = join_error(RuntimeError("no raylet on this host"), "10.0.0.1:6379")
    assert isinstance(error, ClusterError)
    assert "http://HOST:8265" in str(error)
    assert "--address or RAY_ADDRESS" in str(join_error(ConnectionError("none found"), "auto"))

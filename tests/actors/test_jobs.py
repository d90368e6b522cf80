"""Ray Jobs as a way to ask a cluster from outside: answers, errors, deadlines, and nothing left behind."""

import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

from negalign_ray.actors.jobs import answer_in, ask, error_in, jobs_of_run, open_jobs, refusals
from negalign_ray.actors.submission import check, submit, unpack
from negalign_ray.errors import (
    ClusterError,
    ConfigError,
    DataError,
    NoSuchRunError,
    RunExistsError,
    StallError,
    TokenError,
)
from negalign_ray.settings import load_config
from negalign_ray.settings.bundle import make_bundle

RAY_LINES = "2026-11-22 21:00:00,000\tINFO job_manager.py:568 -- Runtime env is setting up.\n"


@dataclass
class FakeJob:
    submission_id: str
    entrypoint: str
    metadata: dict
    status: JobStatus
    message: str = "it said nothing"
    start_time: int = 0


@dataclass
class FakeJobs:
    """A dashboard whose jobs end at once with `status` and `output`; None = they go on for ever."""

    status: JobStatus | None = JobStatus.SUCCEEDED
    output: str = '{"step": 3}\n'
    jobs: dict[str, FakeJob] = field(default_factory=dict)
    submitted: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    sent: dict[str, str] = field(default_factory=dict)  # what the working folder held

    def submit_job(self, *, entrypoint, submission_id, runtime_env=None, metadata=None):
        if runtime_env:
            folder = Path(runtime_env["working_dir"])
            self.sent = {str(f.relative_to(folder)): f.read_text() for f in folder.rglob("*") if f.is_file()}
        self.submitted.append(entrypoint)
        status = self.status or JobStatus.RUNNING
        self.jobs[submission_id] = FakeJob(submission_id, entrypoint, metadata or {}, status)
        return submission_id

    def get_job_info(self, job_id):
        return self.jobs[job_id]

    def get_job_logs(self, job_id):
        return RAY_LINES + self.output

    def list_jobs(self):
        return list(self.jobs.values())

    def stop_job(self, job_id):
        self.stopped.append(job_id)
        return True

    def delete_job(self, job_id):
        self.deleted.append(job_id)
        return True


# Asking


def test_a_question_is_a_job_that_answers_in_json_and_is_deleted():
    jobs = FakeJobs()
    assert ask(jobs, ["status", "d2o; rm -rf /", "--json"], deadline_s=1) == {"step": 3}
    assert jobs.submitted == ["negalign-ray status 'd2o; rm -rf /' --json"], "quoted for the shell"
    assert jobs.deleted == list(jobs.jobs)


def test_the_error_of_the_command_there_is_raised_here():
    jobs = FakeJobs(JobStatus.FAILED, "NoSuchRunError: the cluster has no run 'x'. It has: d2o.\n")
    with pytest.raises(NoSuchRunError, match=r"^the cluster has no run 'x'\. It has: d2o\.$"):
        ask(jobs, ["status", "x"], deadline_s=1)
    assert jobs.deleted == list(jobs.jobs)


def test_an_error_that_is_none_of_ours_says_what_to_look_at():
    jobs = FakeJobs(JobStatus.FAILED, "/bin/sh: negalign-ray: not found\n")
    with pytest.raises(ClusterError, match=r"could not run `negalign-ray status`.*on the PATH of its head"):
        ask(jobs, ["status", "x"], deadline_s=1)


def test_a_job_that_never_ends_is_stopped_at_the_deadline():
    jobs = FakeJobs(status=None)
    with pytest.raises(StallError, match="has not ended within 0 s"):
        ask(jobs, ["status", "x"], deadline_s=0, pause=lambda _: None)
    assert jobs.stopped == list(jobs.jobs)


def test_the_answer_is_the_last_line_of_json_among_the_lines_of_libraries():
    assert answer_in('{"a": 1}\nINFO words\n{"b": 2}\n{torn\nmore words\n') == {"b": 2}
    with pytest.raises(ClusterError, match="without JSON"):
        answer_in("words\n")


def test_only_our_own_errors_are_made_from_text():
    assert isinstance(error_in("ConfigError: wrong\n"), ConfigError)
    assert isinstance(error_in("StallError: conductor[0]: late\n"), ClusterError), "it needs a role to be a StallError"
    assert error_in("ValueError: not ours\nOSError: neither\n") is None


# Reaching the dashboard


def test_a_refused_token_and_a_strange_answer_are_typed_errors():
    with pytest.raises(TokenError, match="http://h:8265 did not get its token"), refusals("http://h:8265"):
        raise AuthenticationError("Forbidden")
    with (
        pytest.raises(ClusterError, match="does not answer as a Ray cluster does: Request failed with status code 500"),
        refusals("http://h:8265"),
    ):
        raise RuntimeError("Request failed with status code 500")


@pytest.mark.parametrize("address", ["http://", "https://user:secret@host:8265", "http://secret@host"])
def test_an_address_without_a_host_or_with_credentials_is_refused_without_repeating_them(address):
    with pytest.raises(ClusterError, match="of the form http://HOST:8265") as caught:
        open_jobs(address)
    assert "secret" not in str(caught.value)


def test_a_dashboard_that_nobody_serves_is_told_with_the_way_to_reach_one():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(ClusterError, match=r"no cluster at http.*refused.*ssh -L 8265"):
        open_jobs(address)


@contextmanager
def silent_server():
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []
        accept = threading.Thread(target=lambda: held.extend(server.accept() for _ in range(2)), daemon=True)
        accept.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        accept.join(1)
        for connection, _ in held:
            connection.close()


def test_a_server_that_never_answers_is_given_up():
    with silent_server() as address, pytest.raises(ClusterError, match=r"read timeout=0\.2"):
        open_jobs(address, request_s=0.2)


# Submitting


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "negatives.jsonl").write_text("rows")
    overrides = ["data.path=negatives.jsonl", "run.name=mine", "run.dir=/shared/runs"]
    return make_bundle(load_config(preset="d2o", overrides=overrides), limit_bytes=10**6)


def test_a_run_is_sent_with_its_files_and_found_again_by_its_name(bundle):
    jobs = FakeJobs(status=None)
    job = submit(jobs, bundle, address="http://h:8265")
    assert jobs.submitted == ["negalign-ray train-submitted"]
    assert set(jobs.sent) == {"config.yaml", "inputs/data.path/negatives.jsonl"}
    assert "path: inputs/data.path/negatives.jsonl" in jobs.sent["config.yaml"]
    assert [each.submission_id for each in jobs_of_run(jobs, "mine")] == [job]
    assert jobs_of_run(jobs, "min") == []


def test_a_second_run_of_the_same_name_is_refused_until_the_first_has_ended(bundle):
    jobs = FakeJobs(status=None)
    first = submit(jobs, bundle, address="http://h:8265")
    with pytest.raises(RunExistsError, match=rf"run\.name=mine: .*{first}.*negalign-ray stop mine --address http://h"):
        submit(jobs, bundle, address="http://h:8265")
    jobs.jobs[first].status = JobStatus.FAILED
    assert submit(jobs, bundle, address="http://h:8265") != first


def test_on_the_cluster_the_inputs_move_into_the_run_directory(bundle, tmp_path):
    there, home = tmp_path / "job", tmp_path / "home"
    there.mkdir()
    bundle.write(there)
    (there / "config.yaml").write_text((there / "config.yaml").read_text().replace("/shared/runs", "~/runs"))
    config = unpack(there, home=home)
    assert config.run_dir == home / "runs" / "mine"
    assert config.data.path == str(home / "runs" / "mine" / "inputs" / "data.path" / "negatives.jsonl")
    assert Path(config.data.path).read_text() == "rows"

    (there / "inputs" / "data.path" / "negatives.jsonl").write_text("others")
    (config.run_dir / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match=r"run\.name=mine: .*already holds a run"):
        unpack(there, home=home)
    assert Path(config.data.path).read_text() == "rows", "of a run that is there nothing is touched"


def test_what_only_the_cluster_has_is_left_to_it_to_check(tmp_path):
    overrides = ["model.path=/shared/model", "data.path=/shared/rows.jsonl"]
    checked = check(load_config(preset="d2o", overrides=overrides), limit_bytes=0)
    assert set(checked.elsewhere) == {"model.path", "data.path"}
    head = 'scorers.heads=[{"name": "a", "kind": "http", "target": "http://host/?api_key=x"}]'
    with pytest.raises(ConfigError, match="token_env"):
        check(load_config(preset="d2o", overrides=[*overrides, head]), limit_bytes=0)


def test_what_is_wrong_is_told_before_anything_is_sent(tmp_path, monkeypatch, toy_model):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Why?", "rejected": 3}\n')
    overrides = [f"model.path={toy_model}", "data.path=rows.jsonl"]
    with pytest.raises(DataError, match=r"rows\.jsonl"):
        check(load_config(preset="d2o", overrides=overrides), limit_bytes=10**6)

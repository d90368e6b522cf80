"""A hub that cannot be reached costs seconds, and its address, the reason and the remedy are said."""

import socket
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import huggingface_hub
import pytest
from huggingface_hub import constants

from negalign_ray import hub
from negalign_ray.data.sources import read_rows
from negalign_ray.errors import DataError, ModelError
from negalign_ray.models.packaged import resolve_model
from negalign_ray.rewards.hf_classifier import HFClassifierHead

IN_TIME_S = 10.0  # of a machine with much else to do; without the question it takes 20 s, or never ends
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


@contextmanager
def silent_port():
    """Connections are accepted by the system, and nobody ever reads from them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def closed_port():
    """Bound, so that nobody else gets it, but not listening."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        yield server.getsockname()[1]


@contextmanager
def refusing_port():
    """A hub that answers, if only with 503."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(503)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def point_at(monkeypatch, tmp_path):
    """Sets the hub that is asked, as the variables do for a new process; the caches are empty."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr(hub, "ANSWER_S", 0.5)
    huggingface_hub.close_session()  # the next one reads the proxies

    def point(port, user=""):
        monkeypatch.setattr(constants, "ENDPOINT", f"http://{user}127.0.0.1:{port}")

    yield point
    huggingface_hub.close_session()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("port", "says"), [(silent_port, "timed out|no answer"), (closed_port, "refused")])
def test_a_hub_that_cannot_be_reached_ends_a_model_and_rows_at_once(port, says, point_at):
    with port() as number:
        point_at(number)
        start_s = time.monotonic()
        with pytest.raises(ModelError, match=f"(?s):{number}: .*({says}).*HF_ENDPOINT.*set model.path=FOLDER"):
            resolve_model("someone/x")
        with pytest.raises(DataError, match=f"(?s)127.0.0.1:{number}: .*({says}).*HF_ENDPOINT.*name the file"):
            read_rows("someone/rows")
        assert time.monotonic() - start_s < IN_TIME_S
        with pytest.raises(ModelError, match=f"(?s)head 'harm'.*:{number}: .*({says}).*set target to the folder"):
            HFClassifierHead.load("harm", "someone/judge")


@pytest.mark.timeout(60)
def test_the_deadline_is_the_one_that_is_set(point_at, monkeypatch):
    with silent_port() as number:
        point_at(number)
        monkeypatch.setattr(hub, "ANSWER_S", 0.1)
        start_s = time.monotonic()
        assert hub.why_unreachable() is not None
        assert 0.1 <= time.monotonic() - start_s < IN_TIME_S


def test_any_answer_is_one_and_no_later_request_waits_for_ever(point_at, monkeypatch):
    monkeypatch.setattr(hub, "ANSWER_S", 30.0)
    with refusing_port() as number:
        point_at(number)
        assert hub.why_unreachable() is None
    timeout = huggingface_hub.get_session().timeout
    assert (timeout.connect, timeout.read) == (hub.SILENCE_S, hub.SILENCE_S)
    assert constants.HF_HUB_DOWNLOAD_TIMEOUT > 0
    assert constants.HF_HUB_ETAG_TIMEOUT > 0


def test_a_proxy_of_the_environment_is_used(point_at, monkeypatch):
    monkeypatch.setattr(hub, "ANSWER_S", 30.0)
    with refusing_port() as proxy, closed_port() as number:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy}")
        point_at(number)
        assert hub.why_unreachable() is None
        monkeypatch.setenv("http_proxy", "nonsense://x")
        huggingface_hub.close_session()
        assert "nonsense" in hub.why_unreachable()


def test_a_password_in_the_address_is_not_shown(point_at):
    with closed_port() as number:
        point_at(number, user="me:secret@")
        assert hub.why_unreachable().startswith(f"http://127.0.0.1:{number}: ")


def test_without_permission_nobody_is_asked(point_at, monkeypatch):
    with closed_port() as number:
        point_at(number)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert hub.why_unreachable() is None


@pytest.mark.timeout(60)
def test_what_is_in_the_cache_is_used_where_the_hub_is_silent(point_at, tmp_path, caplog):
    snapshot = tmp_path / "hub" / "models--someone--x" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").touch()
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    with silent_port() as number:
        point_at(number)
        assert resolve_model("someone/x") == snapshot
    assert "is taken from the cache, as it was" in caplog.text


@pytest.mark.timeout(60)
def test_rows_in_the_cache_are_used_where_the_hub_is_silent(point_at, tmp_path, caplog):
    import datasets

    rows = [{"prompt": "Why?", "rejected": "No."}]
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Why?", "rejected": "No."}\n')
    cache = tmp_path / "datasets"
    datasets.load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), cache_dir=str(cache))
    [made] = (cache / "json").glob("*/*/*/json-train.arrow")
    folder = cache / "someone___rows" / "default" / "0.0.0" / "abc"  # where a data set of the hub would lie
    folder.mkdir(parents=True)
    (folder / "rows-train.arrow").write_bytes(made.read_bytes())
    info = (made.parent / "dataset_info.json").read_text()
    (folder / "dataset_info.json").write_text(info.replace('"dataset_name": "json"', '"dataset_name": "rows"'))
    with silent_port() as number:
        point_at(number)
        assert [row.values for row in read_rows("someone/rows")] == rows
    assert "is taken from the cache, as it was" in caplog.text
    assert not datasets.config.HF_HUB_OFFLINE

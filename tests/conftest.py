"""Fixtures that all tests share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need a network
settings.register_profile("shared-machine", deadline=None)  # examples slow down when other processes compute
settings.load_profile("shared-machine")


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Llama (2 layers, hidden 64) with tokenizer and chat template; see tests/toy.py."""
    from tests.toy import make_toy_model

    return make_toy_model(tmp_path_factory.mktemp("toy") / "model")


@pytest.fixture(scope="session")
def ray_cluster():
    """A local, token-authenticated cluster with its dashboard on loopback, as `negalign-ray train` starts it."""
    from negalign_ray.actors.cluster import start_ray, stop_ray

    start_ray()
    yield
    stop_ray()

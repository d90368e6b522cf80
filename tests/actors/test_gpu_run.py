"""Short runs whose weights go from GPU to GPU: the whole stack, for real."""

import pytest
import torch

from negalign_ray.actors.run import train
from tests.actors.conftest import read_rows

pytestmark = [pytest.mark.gpu, pytest.mark.real, pytest.mark.timeout(600), pytest.mark.usefixtures("ray_cluster")]
GPU = (
    "samplers.engine=vllm",
    "samplers.gpu_memory_utilization=0.3",
    "sampling.online_from_step=0",
    "sampling.staleness=0",
    "model.dtype=bfloat16",
    "learners.dtype=bfloat16",
)


def came_by(config, way: str) -> int:
    return (config.run_dir / "logs" / "sampler-0.log").read_text().count(f"came by {way}")


@pytest.mark.skipif(torch.cuda.device_count() < 1, reason="needs a GPU")
def test_samplers_and_learners_share_one_gpu(toy_config):
    config = toy_config(
        *GPU, "samplers.gpus=0.4", "learners.gpus=0.4", "samplers.weight_transfer=ipc", "samplers.sleep=true"
    )
    assert train(config)["steps"] == 3
    assert came_by(config, "ipc") == 3
    assert not [row for row in read_rows(config.run_dir / "events.jsonl") if row["kind"] == "fault"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_samplers_and_learners_have_a_gpu_each(toy_config):
    config = toy_config(*GPU, "samplers.gpus=1", "learners.gpus=1", "samplers.weight_transfer=nccl")
    assert train(config)["steps"] == 3
    assert came_by(config, "nccl") == 3
    assert not [row for row in read_rows(config.run_dir / "events.jsonl") if row["kind"] == "fault"]

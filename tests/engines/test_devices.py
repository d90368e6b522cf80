"""A role computes on what it reserved: every engine asks one helper, and none looks for a device by itself."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from negalign_ray.actors.scorer import load_heads
from negalign_ray.config import GuideConfig, HeadConfig, LearnersConfig, SamplersConfig, ScorersConfig
from negalign_ray.engines.deepspeed_engine import DeepSpeedEngine, _deepspeed_config
from negalign_ray.engines.frozen import FrozenModel
from negalign_ray.engines.guide_engine import GuideEngine
from negalign_ray.engines.transformers_engine import TransformersEngine
from negalign_ray.engines.vllm_engine import _require_platform
from negalign_ray.errors import ModelError
from negalign_ray.loops.fitting import learner_config
from negalign_ray.models.device import device_of

PACKAGE = Path(__file__).resolve().parents[2] / "negalign_ray"
HEAD = HeadConfig(name="words", kind="python", target="tests.actors.heads:word_count")
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a CUDA device")


def test_a_role_without_a_reserved_gpu_computes_on_the_cpu_even_where_it_sees_one():
    assert device_of("references", gpus=0, sees_cuda=lambda: True) == "cpu"


def test_any_share_of_a_gpu_is_used():
    assert device_of("scorers", gpus=0.25, sees_cuda=lambda: True) == "cuda"


def test_a_reserved_gpu_that_is_not_there_is_refused_with_the_setting():
    with pytest.raises(ModelError, match=r"guide\.gpus=0\.5 reserves a GPU, but torch finds no CUDA device.*gpus=0\."):
        device_of("guide", gpus=0.5, sees_cuda=lambda: False)


def start_guide():
    config = learner_config(GuideConfig(gpus=1))
    return GuideEngine(torch.nn.Linear(1, 1), config=config, zero_frac=0.0, seed=0)


ROLES = {
    "samplers": lambda: TransformersEngine(
        "nowhere", config=SamplersConfig(gpus=1), dtype="float32", max_model_len=8, seed=0, stop_ids=()
    ),
    "references": lambda: FrozenModel(
        "nowhere", dtype="float32", threads=1, micro_batch_tokens=8, max_row_tokens=8, gpus=1
    ),
    "learners": lambda: DeepSpeedEngine("nowhere", config=LearnersConfig(gpus=1), dtype=torch.float32, seed=0),
    "guide": start_guide,
    "scorers": lambda: load_heads((HEAD,), resources=ScorersConfig(gpus=1)),
}


@without_cuda
@pytest.mark.parametrize("section", ROLES)
def test_every_role_takes_its_device_from_its_own_section(section):
    with pytest.raises(ModelError, match=rf"^{section}\.gpus=1 reserves a GPU"):
        ROLES[section]()


def test_deepspeed_overlaps_communication_on_the_reserved_device_only():
    for device, overlaps in (("cpu", False), ("cuda", True)):
        settings = _deepspeed_config(LearnersConfig(), torch.float32, device=device, num_trainable=1)
        assert settings["zero_optimization"]["overlap_comm"] is overlaps


@pytest.mark.parametrize(
    ("gpus", "is_cpu", "message"),
    [
        (0, False, r"samplers\.gpus=0, but the installed vLLM computes on the GPU; set samplers\.gpus"),
        (1, True, r"samplers\.gpus=1, but the installed vLLM is a build for CPUs; install negalign-ray\[gpu\]"),
    ],
)
def test_a_vllm_built_for_another_device_than_the_reserved_one_is_refused(gpus, is_cpu, message):
    with pytest.raises(ModelError, match=message):
        _require_platform(SamplersConfig(gpus=gpus), is_cpu=is_cpu)
    _require_platform(SamplersConfig(gpus=gpus), is_cpu=not is_cpu)


def test_only_the_helper_and_a_command_without_roles_ask_whether_there_is_a_gpu():
    asking = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if "cuda.is_available" in path.read_text()}
    assert asking == {Path("models/device.py"), Path("cli/talk.py")}


def test_a_scorer_without_a_gpu_loads_its_heads_without_torch():
    code = (
        "import sys\n"
        "from negalign_ray.config import HeadConfig\n"
        "from negalign_ray.models.device import device_of\n"
        "from negalign_ray.rewards import build_head\n"
        "build_head(HeadConfig(name='a', kind='python', target='math:fsum'), device=device_of('scorers', gpus=0))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

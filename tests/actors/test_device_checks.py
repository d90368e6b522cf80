"""Settings that devices cannot follow are refused before anything starts, each with what to set instead."""

import pytest

from negalign_ray.actors.device_checks import check_devices
from negalign_ray.actors.packing import Node, Placement, seat
from negalign_ray.actors.processes import actor_options
from negalign_ray.config import Config
from negalign_ray.errors import ConfigError

ON_POLICY = {"online_from_step": 0, "staleness": 0}
SHARED = {"samplers": {"gpus": 0.5}, "learners": {"gpus": 0.5}}
APART = {"samplers": {"gpus": 1, "num": 2}, "learners": {"gpus": 1, "num": 4}}


def make(base: dict, **samplers) -> Config:
    return Config.model_validate({**base, "samplers": {**base.get("samplers", {}), **samplers}})


def refusal(config: Config) -> str:
    with pytest.raises(ConfigError) as found:
        check_devices(config)
    return str(found.value)


@pytest.mark.parametrize(
    "config",
    [
        Config(),
        make(APART, weight_transfer="nccl"),
        make(APART, weight_transfer="nccl", tensor_parallel_size=2),
        make(SHARED, weight_transfer="ipc"),
        make({**SHARED, "sampling": ON_POLICY}, weight_transfer="ipc", sleep=True),
        make({**SHARED, "sampling": ON_POLICY}, sleep=True),
        make({"samplers": {"gpus": 0.2, "num": 3}, "learners": {"gpus": 0.4}}, weight_transfer="ipc"),
    ],
    ids=["the default", "apart", "apart, split", "shared", "shared, asleep", "asleep", "one learner, three samplers"],
)
def test_what_devices_can_do_is_accepted(config):
    check_devices(config)


@pytest.mark.parametrize(
    ("setting", "base"),
    [
        ({"weight_transfer": "nccl"}, APART),
        ({"weight_transfer": "ipc"}, SHARED),
        ({"sleep": True}, {**SHARED, "sampling": ON_POLICY}),
        ({"tensor_parallel_size": 2}, APART),
    ],
)
def test_what_vllm_does_on_gpus_is_refused_for_another_engine_and_on_cpus(setting, base):
    name = f"samplers.{next(iter(setting))}="
    other = refusal(make(base, engine="transformers", **setting))
    assert other.startswith(name)
    assert "samplers.engine" in other
    on_cpu = refusal(make(base, **{**setting, "gpus": 0}))
    assert on_cpu.startswith(name)
    assert "samplers.gpus=0" in on_cpu
    assert "samplers.num" in on_cpu, "what helps on a CPU"


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ({"samplers": {"gpus": 0.5}, "learners": {"gpus": 1}}, "but samplers.gpus=0.5; set samplers.gpus=1"),
        ({"samplers": {"gpus": 1}, "learners": {"gpus": 0}}, "but learners.gpus=0; set learners.gpus=1"),
    ],
)
def test_nccl_wants_whole_devices_on_both_sides(base, says):
    message = refusal(make(base, weight_transfer="nccl"))
    assert says in message
    assert "weight_transfer=object_store" in message


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ({"samplers": {"gpus": 0.5}, "learners": {"gpus": 1}}, "but learners.gpus=1; set a share"),
        ({"samplers": {"gpus": 1}, "learners": {"gpus": 0.5}}, "but samplers.gpus=1; set a share"),
        ({"samplers": {"gpus": 0.3}, "learners": {"gpus": 0.3, "num": 2}}, "learners.num=2; set learners.num=1"),
        (
            {"samplers": {"gpus": 0.3, "num": 2}, "learners": {"gpus": 0.5}},
            "2 sampler(s) of samplers.gpus=0.3 make 1.1",
        ),
        (
            {"samplers": {"gpus": 0.2, "autoscale": {"max": 4}}, "learners": {"gpus": 0.5}},
            "4 sampler(s) of samplers.gpus=0.2 make 1.3",
        ),
    ],
)
def test_ipc_wants_everybody_on_one_device(base, says):
    assert says in refusal(make(base, weight_transfer="ipc"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"sampling": {**ON_POLICY, "staleness": 1}}, "with sampling.staleness=1"),
        ({"sampling": {"online_from_step": 200}}, "with sampling.online_from_step=200"),
        ({"sampling": {**ON_POLICY, "schedule": "interval"}}, "with sampling.schedule=interval"),
        ({"sampling": ON_POLICY, "evaluation": {"every": 5}}, "with evaluation.every=5"),
        ({"sampling": ON_POLICY, "samplers": {"gpus": 1}}, "but samplers.gpus=1; set a share"),
    ],
)
def test_samplers_that_have_work_while_learners_train_may_not_sleep(more, says):
    assert says in refusal(make({**SHARED, **more}, sleep=True))


def test_a_part_of_a_gpu_is_no_part_of_a_split_sampler():
    message = refusal(make({"samplers": {"gpus": 0.5}}, tensor_parallel_size=2))
    assert "samplers.gpus=0.5" in message


def test_a_split_sampler_reserves_its_devices_on_one_node():
    samplers = make(APART, tensor_parallel_size=2).samplers
    assert actor_options(samplers, name="a")["num_gpus"] == 2
    place = Placement.of("sampler", 2, samplers)
    assert place.bundle == "0.9 CPU + 2 GPU"
    assert not seat([place], [Node("a", 8, (1.0, 1.0)), Node("b", 8, (1.0,)), Node("c", 8, (1.0,))]).complete
    assert seat([place], [Node("a", 8, (1.0, 1.0)), Node("b", 8, (1.0, 1.0))]).complete

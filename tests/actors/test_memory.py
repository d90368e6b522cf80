"""Memory of one actor of each role, worked out by hand for a model of round numbers."""

import pytest

from negalign_ray.actors.memory import GIB, PROCESS_BYTES, Memory, ModelSize, learner_memory, sampler_memory
from negalign_ray.config import LearnersConfig, LoRAConfig, SamplersConfig

MILLION = ModelSize(10**6, vocab_size=1000, hidden_size=10, num_layers=3, kv_width=4)


def test_keys_and_values_of_every_layer_are_kept_per_token():
    assert MILLION.kv_bytes_per_token("bfloat16") == 2 * 3 * 4 * 2


def test_a_model_folder_tells_its_sizes_without_being_loaded(toy_model):
    size = ModelSize.of(toy_model)
    assert (size.vocab_size, size.hidden_size, size.num_layers, size.kv_width) == (304, 64, 2, 2 * 32)
    assert size.num_params == 304 * 64 + 2 * (64 * 128 * 2 + 64 * 64 * 2 + 3 * 64 * 128 + 2 * 64) + 64


@pytest.mark.parametrize(("checkpointing", "values"), [(False, 17), (True, 1)])
def test_activations_grow_with_the_micro_batch_and_shrink_with_checkpointing(checkpointing, values):
    config = LearnersConfig(micro_batch_tokens=100, gradient_checkpointing=checkpointing)
    assert learner_memory(MILLION, config, "bfloat16").activations == values * 100 * 3 * 10 * 2


def test_adapters_have_little_to_optimise_but_all_weights_to_load():
    needed = learner_memory(MILLION, LearnersConfig(lora=LoRAConfig(), zero_stage=0), "bfloat16")
    assert (needed.weights, needed.gradients, needed.optimizer) == (2_000_000, 40_000, 120_000)


def test_a_sampler_on_a_gpu_fills_its_share_of_the_device_with_the_kv_cache():
    config = SamplersConfig(gpus=1, gpu_memory_utilization=0.5)
    needed = sampler_memory(MILLION, config, "bfloat16", gpu_bytes=10**8)
    assert (needed.weights, needed.kv_cache) == (2 * 10**6, 5 * 10**7 - 2 * 10**6)
    assert needed.device(gpus=1) == 5 * 10**7
    assert needed.host(gpus=1) == PROCESS_BYTES


def test_a_sampler_on_a_cpu_reserves_what_the_setting_says():
    needed = sampler_memory(MILLION, SamplersConfig(kv_cache_gib=2), "float32", gpu_bytes=None)
    assert (needed.weights, needed.kv_cache) == (4 * 10**6, 2 * GIB)
    assert needed.host(gpus=0) == needed.total == 4 * 10**6 + 2 * GIB + PROCESS_BYTES
    assert needed.device(gpus=0) == 0


def test_the_total_is_the_sum_of_the_parts():
    assert Memory(weights=1, gradients=2, optimizer=4, activations=8, kv_cache=16, logits=32, process=64).total == 127

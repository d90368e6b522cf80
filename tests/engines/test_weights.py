"""The weight bundle and its checksum: what survives the trip, and which faults are detected."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from negalign_ray.engines.weights import (
    WeightBundle,
    _power_sums_torch,
    checksum_of,
    group_of,
    power_sums,
    read_safetensors,
)
from negalign_ray.errors import ModelError

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BITS = {2: torch.int16, 4: torch.int32}


def layers(dtype: torch.dtype = torch.float32, *, seed: int = 0) -> list[tuple[str, torch.Tensor]]:
    torch.manual_seed(seed)
    shapes = {"self_attn.q_proj": (6, 4), "self_attn.k_proj": (2, 4), "self_attn.v_proj": (2, 4), "mlp.up_proj": (5, 4)}
    return [
        (f"layers.{i}.{name}.weight", torch.randn(shape).to(dtype)) for i in (0, 1) for name, shape in shapes.items()
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saved_bundle_loads_with_every_bit_and_a_damaged_one_is_refused(tmp_path, dtype):
    bundle = WeightBundle.from_tensors(layers(dtype), version=7)
    bundle.save(tmp_path)
    loaded = WeightBundle.load(tmp_path)
    assert (loaded.version, loaded.checksum, loaded.index) == (7, bundle.checksum, bundle.index)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(bundle.tensors(), loaded.tensors(), strict=True))
    content = bytearray((tmp_path / "snapshot.bin").read_bytes())
    content[5] ^= 1
    (tmp_path / "snapshot.bin").write_bytes(bytes(content))
    with pytest.raises(ModelError, match="not what was written"):
        WeightBundle.load(tmp_path)
    (tmp_path / "snapshot.bin").write_bytes(bytes(content[:-64]))
    with pytest.raises(ModelError, match="not what was written"):
        WeightBundle.load(tmp_path)


def test_power_sums_are_the_sums_of_raw_bits_and_of_their_squares():
    one, minus_zero = 0x3F800000, 0x80000000
    assert power_sums(torch.tensor([1.0, 0.0, 1.0])) == (2 * one, 2 * one**2)
    assert power_sums(torch.tensor([-0.0] * 5)) == (5 * minus_zero, (5 * minus_zero**2) % 2**64)
    assert power_sums(torch.tensor([1.0, 1.0], dtype=torch.bfloat16)) == (2 * 0x3F80, 2 * 0x3F80**2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_accelerator_formula_equals_the_cpu_formula(dtype):
    tensor = torch.randn(100_003).to(dtype)  # more than one chunk, and no multiple of it
    assert _power_sums_torch(tensor.view(BITS[dtype.itemsize])) == power_sums(tensor)


@given(seed=st.integers(0, 2**31), element=st.integers(0, 55), bit=st.integers(0, 31), dtype=st.sampled_from(DTYPES))
@settings(max_examples=200, deadline=None)
def test_one_flipped_bit_anywhere_changes_the_checksum(seed, element, bit, dtype):
    named = layers(dtype, seed=seed)
    before = checksum_of(named)
    flat = dict(named)["layers.1.self_attn.q_proj.weight"].view(BITS[dtype.itemsize]).view(-1)
    flat[element % 24] ^= torch.tensor(1).bitwise_left_shift(bit % (8 * dtype.itemsize)).to(flat.dtype)
    assert checksum_of(named) != before


@given(seed=st.integers(0, 2**31), padding=st.integers(0, 7))
@settings(max_examples=50, deadline=None)
def test_fusing_permuting_and_zero_padding_keep_the_checksum(seed, padding):
    named = dict(layers(seed=seed))
    fused = {}
    for i in (0, 1):
        qkv = torch.cat([named[f"layers.{i}.self_attn.{x}_proj.weight"] for x in "qkv"])
        packed = qkv.t().reshape(-1)[torch.randperm(qkv.numel())]
        fused[f"layers.{i}.self_attn.qkv_proj.weight"] = torch.cat((packed, torch.zeros(padding)))
        fused[f"layers.{i}.mlp.gate_up_proj.weight"] = named[f"layers.{i}.mlp.up_proj.weight"].t()
    assert checksum_of(fused.items()) == checksum_of(named.items())
    assert checksum_of(reversed(named.items())) == checksum_of(named.items())


def test_two_layers_swapped_change_the_checksum():
    named = dict(layers())
    names = "layers.0.mlp.up_proj.weight", "layers.1.mlp.up_proj.weight"
    swapped = named | {names[0]: named[names[1]], names[1]: named[names[0]]}
    assert checksum_of(swapped.items()) != checksum_of(named.items())


def test_a_parameter_left_out_or_left_old_changes_the_checksum():
    new, old = layers(seed=1), layers(seed=0)
    assert checksum_of(new[:-1]) != checksum_of(new)
    assert checksum_of([*new[:-1], old[-1]]) != checksum_of(new)


def test_q_swapped_with_k_is_not_detected_as_the_docstring_says():
    q, k = torch.randn(2, 4), torch.randn(2, 4)
    assert checksum_of([("a.q_proj.weight", q), ("a.k_proj.weight", k)]) == checksum_of(
        [("a.q_proj.weight", k), ("a.k_proj.weight", q)]
    )


def test_parameters_that_engines_fuse_share_a_group_and_no_others():
    assert group_of("model.layers.3.self_attn.v_proj.bias") == "model.layers.3.self_attn.qkv_proj.bias"
    assert group_of("model.layers.3.mlp.gate_proj.weight") == group_of("model.layers.3.mlp.gate_up_proj.weight")
    assert group_of("model.layers.3.self_attn.qkv_proj.weight") == "model.layers.3.self_attn.qkv_proj.weight"
    assert group_of("model.layers.3.mlp.down_proj.weight") == "model.layers.3.mlp.down_proj.weight"


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bundle_travels_out_of_band_and_arrives_bit_by_bit(dtype):
    named = [*layers(dtype), ("norm.weight", torch.randn(3).to(dtype)), ("scalar", torch.tensor(2.0, dtype=dtype))]
    bundle = WeightBundle.from_tensors(named, version=7)
    buffers: list[pickle.PickleBuffer] = []
    message = pickle.dumps(bundle, protocol=5, buffer_callback=buffers.append)
    assert len(message) < 4096  # the weights are not in it
    arrived = pickle.loads(message, buffers=[bytes(buffer.raw()) for buffer in buffers])  # noqa: S301 - our own bytes
    assert not arrived.buffer.flags.writeable  # as from the object store
    for (name, sent), (arrived_name, tensor) in zip(named, arrived.tensors(), strict=True):
        assert name == arrived_name
        assert tensor.dtype == dtype
        assert torch.equal(tensor, sent)
        assert np.shares_memory(tensor.view(BITS[dtype.itemsize]).numpy(), arrived.buffer)
    assert arrived.version == 7
    assert arrived.checksum == bundle.checksum == checksum_of(arrived.tensors()) == checksum_of(named)


def test_a_generator_and_a_list_give_the_same_bundle_also_beyond_the_first_buffer():
    tensors = [(f"w{i}", torch.full((4_000_000,), float(i))) for i in range(6)]  # 96 MB, more than the first 64 MiB
    listed = WeightBundle.from_tensors(tensors, version=0, dtype=torch.float32)
    streamed = WeightBundle.from_tensors(iter(tensors), version=0, dtype=torch.float32)
    assert listed.index == streamed.index
    assert np.array_equal(listed.buffer, streamed.buffer)
    assert listed.checksum == streamed.checksum


def test_casting_to_bfloat16_rounds_as_torch_does():
    bundle = WeightBundle.from_tensors([("w", torch.tensor([1.001, -3.1415927]))], version=0, dtype=torch.bfloat16)
    ((_, tensor),) = bundle.tensors()
    assert tensor.tolist() == [1.0, -3.140625]
    assert bundle.num_bytes == 64  # 4 bytes of weights, padded to a cache line


def test_a_name_given_twice_and_a_quantised_weight_are_refused():
    with pytest.raises(ModelError, match=r"\['w'\] appear twice"):
        WeightBundle.from_tensors([("w", torch.zeros(2)), ("w", torch.zeros(2))], version=0)
    with pytest.raises(ModelError, match=r"w has dtype torch\.int8"):
        WeightBundle.from_tensors([("w", torch.zeros(2, dtype=torch.int8))], version=0)


def test_reading_a_folder_leaves_out_a_stored_copy_of_a_tied_head_and_derived_buffers(tmp_path):
    weights = {"embed.weight": torch.ones(2), "lm_head.weight": torch.ones(2), "rotary_emb.inv_freq": torch.ones(2)}
    save_file(
        {f"model.{name}" if name.startswith("rotary") else name: t for name, t in weights.items()},
        tmp_path / "m.safetensors",
    )
    assert [name for name, _ in read_safetensors(tmp_path, tied=True)] == ["embed.weight"]
    assert {name for name, _ in read_safetensors(tmp_path, tied=False)} == {"embed.weight", "lm_head.weight"}
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors"):
        list(read_safetensors(tmp_path / "nothing", tied=True))

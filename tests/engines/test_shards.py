"""The checksum of a split model is that of the whole, and a worker that kept older weights is found.

The layers are vLLM's own, with its own loaders, built for one worker after the other; the process group is made up.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from negalign_ray.engines.shards import Part, Shards, load_file, parts_of, whole_checksum
from negalign_ray.engines.weights import WeightBundle, checksum_of
from negalign_ray.errors import WeightUpdateError

pytest.importorskip("vllm", reason="vLLM is not installed")
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.model_executor.layers import linear, vocab_parallel_embedding

HIDDEN, INNER, VOCAB, HEAD = 16, 24, 70, 4  # 70 is padded to 128 with zeros


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(HIDDEN), requires_grad=False)


class Block(nn.Module):
    def __init__(self, num_heads: int, num_kv_heads: int):
        super().__init__()
        self.input_layernorm = Norm()
        self.qkv_proj = linear.QKVParallelLinear(HIDDEN, HEAD, num_heads, num_kv_heads, bias=True, prefix="qkv_proj")
        self.o_proj = linear.RowParallelLinear(num_heads * HEAD, HIDDEN, bias=True, prefix="o_proj")
        self.gate_up_proj = linear.MergedColumnParallelLinear(HIDDEN, [INNER] * 2, bias=False, prefix="gate_up_proj")
        self.down_proj = linear.RowParallelLinear(INNER, HIDDEN, bias=False, prefix="down_proj")
        self.router = linear.ReplicatedLinear(HIDDEN, 3, bias=False, prefix="router")


class Model(nn.Module):
    """As vLLM's models: fused layers, a tied head, and `load_weights` that asks every parameter's own loader."""

    def __init__(self, num_heads: int, num_kv_heads: int):
        super().__init__()
        self.embed_tokens = vocab_parallel_embedding.VocabParallelEmbedding(VOCAB, HIDDEN)
        self.layer = Block(num_heads, num_kv_heads)
        self.lm_head = self.embed_tokens

    def load_weights(self, weights):
        own = dict(self.named_parameters())
        fused = {"q_proj": ("qkv_proj", "q"), "k_proj": ("qkv_proj", "k"), "v_proj": ("qkv_proj", "v")}
        fused |= {"gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1)}
        for name, tensor in weights:
            part = next((part for part in fused if part in name), None)
            where, shard = fused[part] if part else ("", None)
            parameter = own[name.replace(part, where) if part else name]
            if not hasattr(parameter, "weight_loader"):
                parameter.data.copy_(tensor)
            elif shard is None:
                parameter.weight_loader(parameter, tensor)
            else:
                parameter.weight_loader(parameter, tensor, shard)


def whole_model(num_heads: int, num_kv_heads: int, *, seed: int = 0) -> list[tuple[str, torch.Tensor]]:
    """Hugging Face names."""
    q, kv = num_heads * HEAD, num_kv_heads * HEAD
    shapes = {"embed_tokens.weight": (VOCAB, HIDDEN), "layer.input_layernorm.weight": (HIDDEN,)}
    for name, rows in {"q": q, "k": kv, "v": kv}.items():
        shapes |= {f"layer.{name}_proj.weight": (rows, HIDDEN), f"layer.{name}_proj.bias": (rows,)}
    shapes |= {"layer.o_proj.weight": (HIDDEN, q), "layer.o_proj.bias": (HIDDEN,), "layer.router.weight": (3, HIDDEN)}
    shapes |= {"layer.gate_proj.weight": (INNER, HIDDEN), "layer.up_proj.weight": (INNER, HIDDEN)}
    shapes |= {"layer.down_proj.weight": (HIDDEN, INNER)}
    generator = torch.Generator().manual_seed(seed)
    return [(name, torch.randn(shape, generator=generator)) for name, shape in shapes.items()]


class Workers:
    """vLLM's `apply_model` over workers that are built one after the other."""

    def __init__(self, monkeypatch, size: int, num_heads: int, num_kv_heads: int):
        self.models = []
        for rank in range(size):
            monkeypatch.setattr(parallel_state, "_TP", SimpleNamespace(rank_in_group=rank, world_size=size))
            with set_current_vllm_config(VllmConfig()):
                self.models.append(Model(num_heads, num_kv_heads))

    def apply_model(self, function):
        return [function(model) for model in self.models]


@pytest.mark.parametrize(
    ("size", "num_heads", "num_kv_heads"),
    [(1, 4, 2), (2, 4, 4), (2, 4, 2), (4, 4, 2), (4, 8, 1)],
    ids=["one worker", "as many key-value heads", "fewer", "each on two workers", "one on four workers"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shards_add_up_to_the_checksum_of_the_whole(monkeypatch, size, num_heads, num_kv_heads, dtype):
    bundle = WeightBundle.from_tensors(whole_model(num_heads, num_kv_heads), version=1, dtype=dtype)
    workers = Workers(monkeypatch, size, num_heads, num_kv_heads)
    shards = Shards(workers, dtype)
    shards.load(bundle)
    assert shards.checksum() == bundle.checksum
    for parameter in workers.models[-1].parameters():
        before = parameter.flatten()[0].item()
        parameter.data.view(-1)[0] += 1
        assert not confirms(shards, bundle)
        parameter.data.view(-1)[0] = before
    assert confirms(shards, bundle)


def confirms(shards: Shards, bundle: WeightBundle) -> bool:
    try:
        return shards.checksum() == bundle.checksum
    except WeightUpdateError:
        return False


def test_a_worker_that_kept_older_copies_is_found_although_the_others_have_the_new_ones(monkeypatch):
    workers = Workers(monkeypatch, 2, 4, 2)
    shards = Shards(workers, torch.float32)
    shards.load(WeightBundle.from_tensors(whole_model(4, 2, seed=1), version=1))
    workers.models[1].layer.input_layernorm.weight.data.mul_(2)
    with pytest.raises(WeightUpdateError, match=r"copies of layer\.input_layernorm\.weight .* differ"):
        shards.checksum()


def test_a_layer_whose_split_is_unknown_is_not_taken_for_proved(monkeypatch):
    """Split by hand, as an architecture's own layer might be: its parts look like copies, and differ."""
    whole = torch.randn(6, 2)
    workers = [[Part("w", "", *_sums(half))] for half in whole.chunk(2)]
    with pytest.raises(WeightUpdateError, match="copies of w"):
        whole_checksum(workers)
    named = [[Part("w", str(rank), *_sums(half))] for rank, half in enumerate(whole.chunk(2))]
    assert whole_checksum(named) == checksum_of([("w", whole)])


def _sums(tensor):
    [part] = parts_of(nn.ParameterList([tensor]), dtype=torch.float32)
    return part.s1, part.s2


def test_what_is_sent_to_workers_can_be_pickled():
    import pickle
    from functools import partial

    bundle = WeightBundle.from_tensors(whole_model(4, 2), version=1)
    for call in (partial(load_file, path="a", index=bundle.index), partial(parts_of, dtype=torch.float32)):
        assert pickle.loads(pickle.dumps(call)).func is call.func  # noqa: S301 (our own)

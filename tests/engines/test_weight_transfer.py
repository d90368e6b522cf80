"""NCCL and IPC updates without a GPU: our calls against the signatures and info classes of the installed vLLM."""

import inspect
from dataclasses import asdict, replace

import pytest
import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor

from negalign_ray.engines.generation import CheckedEngine
from negalign_ray.engines.vllm_engine import VllmEngine
from negalign_ray.engines.weight_transfer import (
    WIRE,
    BundleSource,
    Meeting,
    NcclBroadcaster,
    Offer,
    Parcel,
    SilentClient,
    described,
    receive,
)
from negalign_ray.engines.weights import WeightBundle, checksum_of, tensors_in
from negalign_ray.errors import WeightUpdateError
from negalign_ray.records import SampleRequest, SamplingSpec

base = pytest.importorskip("vllm.distributed.weight_transfer.base", reason="vLLM is not installed")
from vllm import LLM  # noqa: E402
from vllm.distributed.weight_transfer import factory, ipc_engine, nccl_common, nccl_engine  # noqa: E402
from vllm.engine.arg_utils import EngineArgs  # noqa: E402

MEETING = Meeting(number=1, world_size=3, address="10.0.0.1", port=29500)


def make_bundle(version: int = 1) -> WeightBundle:
    named = [("a.weight", torch.arange(6.0).view(2, 3)), ("b.bias", torch.ones(5)), ("c.weight", torch.ones(()))]
    return WeightBundle.from_tensors(named, version=version, dtype=torch.bfloat16)


def make_offer(bundle: WeightBundle, way: str = "nccl", **update) -> Offer:
    update = described(bundle.index) | update
    return Offer(bundle.version, bundle.checksum, bundle.num_bytes, way, update, "10.0.0.1", 29500)


class BoundLlm:
    """Writes calls down, after binding them to the signature of the real method."""

    def __init__(self) -> None:
        self.calls = []

    def __getattr__(self, name):
        def call(*arguments, **settings):
            inspect.signature(getattr(LLM, name)).bind(self, *arguments, **settings)
            self.calls.append((name, *arguments, *settings.values()))
            return [] if name == "generate" else None

        return call


# -- sampler -------------------------------------------------------------------------------------------------------


def test_a_sampler_joins_a_new_group_and_stays_in_one_that_stands():
    llm, offer = BoundLlm(), make_offer(make_bundle())
    receive(llm, Parcel(offer, MEETING.join(offset=2)))
    receive(llm, Parcel(offer, join=None))
    update = ["start_weight_update", "update_weights", "finish_weight_update"]
    assert [name for name, *_ in llm.calls] == [
        "shutdown_weight_transfer_engine",
        "init_weight_transfer_engine",
        *update,
        *update,
    ]
    assert llm.calls[1][1] == {"init_info": MEETING.join(offset=2)}
    assert llm.calls[3][1] == {"update_info": dict(offer.update)}


def test_requests_are_what_vllm_takes_from_a_dictionary():
    assert set(asdict(base.WeightTransferInitRequest())) == {"init_info"}
    assert set(asdict(base.WeightTransferUpdateRequest())) == {"update_info"}


def test_what_a_sampler_joins_with_is_vllm_s_init_info():
    info = nccl_common.NCCLWeightTransferInitInfo(**MEETING.join(offset=2))
    assert (info.rank_offset, info.world_size, info.master_address, info.master_port) == (2, 3, "10.0.0.1", 29500)
    assert info.packed
    assert ipc_engine.IPCWeightTransferInitInfo().packed is False, "each tensor has a handle of its own"


def test_what_is_sent_is_described_as_vllm_s_update_info_in_the_order_of_the_tensors():
    bundle = make_bundle()
    info = nccl_engine.NCCLWeightTransferUpdateInfo(**described(bundle.index))
    for (name, tensor), told, dtype, shape in zip(
        bundle.tensors(), info.names, info.dtype_names, info.shapes, strict=True
    ):
        assert (name, tensor.dtype, list(tensor.shape)) == (told, getattr(torch, dtype), shape)


def test_ipc_handles_are_one_per_tensor_by_the_device_that_vllm_looks_for():
    bundle = make_bundle()
    handles = [{"GPU-1": (name,)} for name, _ in bundle.tensors()]
    offer = make_offer(bundle, "ipc", ipc_handles=handles)
    info = ipc_engine.IPCWeightTransferUpdateInfo(**offer.update)
    assert info.ipc_handles == handles
    assert (offer.reaches("GPU-1"), offer.reaches("GPU-2"), offer.together) == (True, False, False)
    assert list(inspect.signature(rebuild_cuda_tensor).parameters)[6] == "storage_device", "vLLM writes its own there"


def test_the_copy_that_is_lent_has_every_tensor_at_its_place():
    bundle = make_bundle()
    copy = torch.from_numpy(bundle.buffer).clone()
    assert checksum_of(tensors_in(copy, bundle.index)) == bundle.checksum


def test_the_engine_is_started_with_arguments_that_vllm_has(toy_model):
    names = set(inspect.signature(EngineArgs).parameters)
    assert {
        "weight_transfer_config",
        "enable_sleep_mode",
        "tensor_parallel_size",
        "distributed_executor_backend",
    } <= names
    arguments = EngineArgs(model=str(toy_model), weight_transfer_config={"backend": "nccl"})
    assert arguments.weight_transfer_config.backend == "nccl"
    assert {"nccl", "ipc"} <= set(factory.WeightTransferEngineFactory._registry)
    inspect.signature(LLM.sleep).bind(None, level=2)
    inspect.signature(LLM.wake_up).bind(None, tags=["weights"])


class Weights(torch.nn.Module):
    """As a vLLM model without anything fused."""

    def __init__(self) -> None:
        super().__init__()
        self.own = torch.nn.ParameterDict({name.replace(".", "_"): tensor for name, tensor in make_bundle().tensors()})

    def named_parameters(self, *arguments, **settings):
        return ((name.removeprefix("own.").replace("_", "."), p) for name, p in super().named_parameters())

    def load_weights(self, weights):
        own = dict(self.named_parameters())
        for name, tensor in weights:
            own[name].copy_(tensor)


def vllm_engine() -> VllmEngine:
    """The real one around an engine that only writes calls down."""
    engine = VllmEngine.__new__(VllmEngine)
    engine._llm, engine._model, engine._shards, engine._packed = BoundLlm(), Weights(), None, []
    engine._dtype, engine._max_model_len, engine._asleep = torch.bfloat16, 99, set()
    engine._version = engine._broken = None
    return engine


@pytest.mark.parametrize("way", ["object store", "nccl"])
def test_an_engine_wakes_its_weights_for_an_update_and_its_cache_for_the_next_answers(way):
    engine, bundle = vllm_engine(), make_bundle()
    engine.sleep()
    engine.sleep()
    if way == "nccl":
        assert engine.receive_weights(Parcel(make_offer(bundle), None)) == bundle.checksum
    else:
        assert engine.load_weights(bundle) == bundle.checksum
    engine.generate([], SamplingSpec(1))
    engine.generate([], SamplingSpec(1))
    names = [call[0] for call in engine._llm.calls if call[0] not in ("reset_prefix_cache", "generate")]
    update = ["start_weight_update", "update_weights", "finish_weight_update"] if way == "nccl" else []
    assert names == ["sleep", "wake_up", *update, "wake_up"]
    assert [call[1:] for call in engine._llm.calls if call[0] in ("sleep", "wake_up")] == [
        (2,),
        (["weights"],),
        (["kv_cache"],),
    ]


def test_an_engine_that_never_slept_is_never_woken():
    engine, bundle = vllm_engine(), make_bundle()
    engine.load_weights(bundle)
    engine.generate([], SamplingSpec(1))
    assert {call[0] for call in engine._llm.calls} == {"reset_prefix_cache", "generate"}


def test_received_weights_that_are_not_the_announced_ones_are_refused():
    engine, offer = vllm_engine(), make_offer(make_bundle())
    with pytest.raises(WeightUpdateError, match=r"the learner announced 0000000000000007 for v1"):
        engine.receive_weights(Parcel(replace(offer, checksum=7), None))
    with pytest.raises(WeightUpdateError):
        engine.generate([], SamplingSpec(1))


# -- learner -------------------------------------------------------------------------------------------------------


def test_a_bundle_is_a_source_of_weights_for_vllm_and_keeps_the_announced_checksum():
    source = BundleSource("cpu")
    assert all(callable(getattr(source, name)) for name in base.WeightSource.__abstractmethods__)
    for version in (1, 2):  # every update iterates anew
        source.bundle = bundle = make_bundle(version)
        pairs = list(source)
        assert checksum_of(pairs) == bundle.checksum
        checked = nccl_engine.NCCLTrainerWeightTransferEngine._checked_iter(source, source.metadata())
        assert [name for name, _ in checked] == [name for name, _ in pairs]


def test_the_conductor_asks_the_samplers_so_the_client_is_silent_and_complete():
    client = SilentClient()
    assert isinstance(client, base.VLLMWeightSyncClient)
    for name in ("init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update"):
        ours, theirs = (inspect.signature(getattr(each, name)) for each in (SilentClient, base.VLLMWeightSyncClient))
        assert list(ours.parameters) == list(theirs.parameters)


class FakeTrainer(nccl_engine.NCCLTrainerWeightTransferEngine):
    """vLLM's own trainer engine, but for NCCL itself."""

    opened: list = []  # noqa: RUF012 (of one test)

    @classmethod
    def trainer_init(cls, init_info, *, client, source=None):
        engine = cls(client=client, source=source, packed=init_info.packed)
        engine.sent, engine.ended = [], False
        cls.opened.append((init_info, engine))
        return engine

    def _broadcast(self, source, meta):
        self.sent.append(checksum_of(self._checked_iter(source, meta)))

    def shutdown(self):
        self.ended = True


def test_a_group_is_opened_once_and_anew_for_another_meeting_or_after_an_abort(monkeypatch):
    monkeypatch.setitem(factory.WeightTransferTrainerFactory._registry, "nccl", lambda: FakeTrainer)
    FakeTrainer.opened.clear()
    broadcaster, bundles = NcclBroadcaster(device="cpu"), [make_bundle(version) for version in range(4)]
    broadcaster.broadcast(bundles[0], MEETING)
    broadcaster.broadcast(bundles[1], MEETING)
    broadcaster.broadcast(bundles[2], Meeting(2, 2, "10.0.0.1", 29501))
    broadcaster.abort()
    broadcaster.broadcast(bundles[3], Meeting(2, 2, "10.0.0.1", 29501))
    infos, engines = zip(*FakeTrainer.opened, strict=True)
    assert [len(engine.sent) for engine in engines] == [2, 1, 1]
    assert [engine.ended for engine in engines] == [True, True, False]
    assert [(info.rank, info.world_size, info.master_port) for info in infos] == [(0, 3, 29500), *[(0, 2, 29501)] * 2]
    assert {name: getattr(infos[0], name) for name in WIRE} == WIRE, "as the samplers unpack"
    assert engines[0].sent == [bundles[0].checksum, bundles[1].checksum]


# -- any engine ----------------------------------------------------------------------------------------------------


class Engine(CheckedEngine):
    """Holds a number as its weights."""

    def __init__(self) -> None:
        self._version, self._broken, self._max_model_len, self.weights = None, None, 99, 0

    def _start(self, model_path, config, *, dtype, seed): ...

    def _answer(self, requests, spec):
        return [self.weights]

    def _load(self, bundle, *, before):
        self.weights = bundle.version
        return bundle.checksum

    def _receive(self, parcel, *, before):
        if parcel.offer.num_bytes == 0:
            raise WeightUpdateError("NCCL error", role="sampler")
        self.weights = parcel.version
        return parcel.checksum

    def _fall_asleep(self):
        self.weights = None

    def checksum(self):
        return 0


def ask(engine):
    return engine.generate([SampleRequest((1,), seed=0)], SamplingSpec(1))


def test_an_engine_that_slept_answers_nothing_before_it_has_new_weights():
    engine, bundle = Engine(), make_bundle(3)
    engine.sleep()
    with pytest.raises(WeightUpdateError, match=r"given up when it went to sleep"):
        ask(engine)
    assert engine.receive_weights(Parcel(make_offer(bundle), None)) == bundle.checksum
    assert ask(engine) == [3]


def test_an_update_that_failed_on_the_way_leaves_an_engine_that_answers_nothing():
    engine, bundle = Engine(), make_bundle(3)
    with pytest.raises(WeightUpdateError, match="NCCL error"):
        engine.receive_weights(Parcel(Offer(3, 1, 0, "nccl", {}), None))
    with pytest.raises(WeightUpdateError, match="NCCL error"):
        ask(engine)
    engine.load_weights(bundle)
    assert ask(engine) == [3]

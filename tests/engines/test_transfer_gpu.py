"""New weights by NCCL and IPC, sleep, and split samplers, for real: real vLLM, real devices, a toy model."""

import threading

import pytest
import torch

from negalign_ray.actors.courier import free_port
from negalign_ray.engines.weight_transfer import IpcLender, Meeting, NcclBroadcaster, Offer, Parcel, described
from negalign_ray.engines.weights import WeightBundle, read_safetensors
from negalign_ray.errors import WeightUpdateError
from negalign_ray.records import SampleRequest, SamplingSpec
from tests.engines.transfer_worker import engine_on
from tests.toy import make_toy_model

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
needs_one = pytest.mark.skipif(torch.cuda.device_count() < 1, reason="needs a GPU")
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
REQUESTS = [SampleRequest((1, 2, 3), seed=0)]
GREEDY = SamplingSpec(8, temperature=0.0)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> list[WeightBundle]:
    """Of other toy models, versions 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("bundles")
    made = []
    for version in (1, 2, 3):
        named = list(read_safetensors(make_toy_model(folder / str(version), seed=version), tied=True))
        made.append(WeightBundle.from_tensors(named, version=version, dtype=torch.bfloat16))
    return made


def by_nccl(bundle: WeightBundle, meeting: Meeting, *, join: bool) -> Parcel:
    offer = Offer(bundle.version, bundle.checksum, bundle.num_bytes, "nccl", described(bundle.index))
    return Parcel(offer, meeting.join(offset=1) if join else None)


def by_ipc(bundle: WeightBundle, lender: IpcLender) -> Parcel:
    return Parcel(Offer(bundle.version, bundle.checksum, bundle.num_bytes, "ipc", lender.lend(bundle)), join={})


@needs_two
def test_a_sampler_on_another_gpu_confirms_what_is_broadcast_in_one_group_and_in_a_new_one(toy_model, bundles):
    broadcaster = NcclBroadcaster()
    meetings = [Meeting(number, 2, "127.0.0.1", free_port()) for number in (1, 2)]
    with engine_on("1", toy_model, gpus=1, weight_transfer="nccl") as engine:
        for bundle, meeting, join in zip(bundles, (meetings[0], *meetings), (True, False, True), strict=True):
            engine.ask("receive_weights", by_nccl(bundle, meeting, join=join))
            broadcaster.broadcast(bundle, meeting)
            assert engine.answer() == engine("checksum") == bundle.checksum
        assert engine("generate", REQUESTS, GREEDY)
        broadcaster.abort()


@needs_two
def test_a_broadcast_whose_receiver_is_gone_can_be_ended(toy_model, bundles):
    broadcaster, meeting = NcclBroadcaster(), Meeting(1, 2, "127.0.0.1", free_port())
    with engine_on("1", toy_model, gpus=1, weight_transfer="nccl") as engine:
        engine.ask("receive_weights", by_nccl(bundles[0], meeting, join=True))
        broadcaster.broadcast(bundles[0], meeting)
        assert engine.answer() == bundles[0].checksum
    hanging = threading.Thread(target=broadcaster.broadcast, args=(bundles[1], meeting), daemon=True)
    hanging.start()
    hanging.join(3)
    broadcaster.abort()
    hanging.join(30)
    assert not hanging.is_alive()
    assert float(torch.ones(4, device="cuda").sum()) == 4, "the device is of use still"


@needs_one
def test_a_sampler_on_the_same_gpu_sleeps_gives_its_memory_back_and_wakes_for_new_weights(toy_model, bundles):
    lender = IpcLender()
    with engine_on("0", toy_model, gpus=0.5, weight_transfer="ipc", sleep=True) as engine:
        first = engine("generate", REQUESTS, GREEDY)
        for bundle in bundles:
            before, _ = torch.cuda.mem_get_info()
            engine("sleep")
            after, total = torch.cuda.mem_get_info()
            assert after - before > 0.1 * total, "of the 0.3 that vLLM took"
            with pytest.raises(WeightUpdateError, match="went to sleep"):
                engine("generate", REQUESTS, GREEDY)
            assert engine("receive_weights", by_ipc(bundle, lender)) == engine("checksum") == bundle.checksum
            lender.take_back()
            [answer] = engine("generate", REQUESTS, GREEDY)
            assert answer.token_ids != first[0].token_ids
        engine("sleep")
        assert engine("load_weights", bundles[0]) == bundles[0].checksum, "the object store wakes it, too"
        assert engine("generate", REQUESTS, GREEDY)


@needs_two
def test_a_split_sampler_proves_its_weights_and_answers_as_a_whole_one(toy_model, bundles):
    answers = []
    for devices, size in (("0", 1), ("0,1", 2)):
        with engine_on(devices, toy_model, gpus=1, tensor_parallel_size=size) as engine:
            assert engine("load_weights", bundles[0]) == engine("checksum") == bundles[0].checksum
            answers.append(engine("generate", REQUESTS, GREEDY)[0].token_ids[:4])
    assert answers[0] == answers[1]

"""Both generation engines against plain `transformers` on a toy model: the same answers, log-probs and weight updates.

vLLM is started once for the whole file; every test begins with the weights of the toy model's folder.
"""

import dataclasses
import os

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from negalign_ray.config import SamplersConfig
from negalign_ray.engines.transformers_engine import TransformersEngine, _draw, _nucleus
from negalign_ray.engines.vllm_engine import VllmEngine
from negalign_ray.engines.weights import WeightBundle
from negalign_ray.errors import ModelError, RoleError, WeightUpdateError
from negalign_ray.records import SampleRequest, SamplingSpec

pytestmark = pytest.mark.real

AFFINITY = os.sched_getaffinity(0)  # before any engine starts
STOP_IDS = (2, *range(100, 120))  # <|im_end|> and twenty more, so that many sampled answers end by themselves
MAX_MODEL_LEN = 96
GREEDY = SamplingSpec(max_new_tokens=16, temperature=0.0)
CONTEXTS = [(1, 40, 41, 42), (1, 70, 80, 90, 60, 61), (1, 200), tuple(range(30, 70))]
SETTINGS = {"config": SamplersConfig(kv_cache_gib=0.1, max_num_seqs=8), "dtype": "float32", "seed": 0}


@pytest.fixture(scope="module", params=[VllmEngine, TransformersEngine], ids=["vllm", "transformers"])
def started(request, toy_model):
    return request.param(toy_model, max_model_len=MAX_MODEL_LEN, stop_ids=STOP_IDS, **SETTINGS)


@pytest.fixture(scope="module")
def original(toy_model):
    model = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32).eval()
    return WeightBundle.from_tensors(model.named_parameters(), version=0)


@pytest.fixture
def engine(started, original):
    started.load_weights(original)
    return started


@pytest.fixture
def perturbed(toy_model):
    """A model whose every weight differs from the toy model's, and its weights."""
    model = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model, WeightBundle.from_tensors(list(model.named_parameters()), version=5)


@torch.no_grad()
def logprobs_of(model, context, answer) -> list[float]:
    ids = torch.tensor([[*context, *answer]])
    logprobs = model(ids).logits[0, len(context) - 1 : -1].log_softmax(-1)
    return logprobs.gather(1, torch.tensor(answer)[:, None])[:, 0].tolist()


@torch.no_grad()
def greedy(model, context, spec=GREEDY) -> tuple[int, ...]:
    ids = list(context)
    for _ in range(spec.max_new_tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in STOP_IDS:
            break
    return tuple(ids[len(context) :])


def requests(num: int = 12) -> list[SampleRequest]:
    return [SampleRequest(CONTEXTS[i % len(CONTEXTS)], seed=1000 + i) for i in range(num)]


def test_greedy_answers_equal_transformers(engine, toy_model):
    model = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32).eval()
    answers = engine.generate([SampleRequest(context, seed=0) for context in CONTEXTS], GREEDY)
    assert [answer.token_ids for answer in answers] == [greedy(model, context) for context in CONTEXTS]


def test_after_an_update_greedy_answers_and_checksum_are_those_of_the_new_weights(engine, original, perturbed):
    model, bundle = perturbed
    assert engine.checksum() == original.checksum
    assert engine.load_weights(bundle) == bundle.checksum == engine.checksum()
    answers = engine.generate([SampleRequest(context, seed=0) for context in CONTEXTS], GREEDY)
    assert [answer.token_ids for answer in answers] == [greedy(model, context) for context in CONTEXTS]
    assert engine.load_weights(original) == original.checksum


@pytest.mark.parametrize(
    "spec", [SamplingSpec(16), SamplingSpec(16, temperature=0.5, top_p=0.8)], ids=["plain", "cold"]
)
def test_logprobs_are_the_models_own_at_temperature_one_whatever_the_sampling(engine, toy_model, spec):
    model = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32).eval()
    for request, answer in zip(requests(), engine.generate(requests(), spec), strict=True):
        expected = logprobs_of(model, request.context_ids, answer.token_ids)
        assert answer.logprobs == pytest.approx(expected, abs=2e-4)


def test_the_same_call_gives_the_same_answers_whatever_was_asked_before(engine):
    first = engine.generate(requests(), SamplingSpec(16))
    engine.generate(requests(3), SamplingSpec(8))
    assert engine.generate(requests(), SamplingSpec(16)) == first


def test_an_answer_depends_on_its_own_seed_and_not_on_its_batch_mates(engine):
    together = engine.generate(requests(), SamplingSpec(16))
    alone = engine.generate(requests()[5:6], SamplingSpec(16))
    assert alone[0].token_ids == together[5].token_ids
    same_context = {together[i].token_ids for i in (0, 4, 8)}
    assert len(same_context) == 3  # three seeds, three answers


def test_an_answer_ends_with_its_stop_token_or_at_its_length(engine, toy_model):
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    answers = engine.generate(requests(40), SamplingSpec(16))
    stopped = [answer for answer in answers if answer.finish_reason == "stop"]
    lengthy = [answer for answer in answers if answer.finish_reason == "length"]
    assert stopped
    assert lengthy
    assert len(stopped) + len(lengthy) == 40
    assert all(answer.token_ids[-1] in STOP_IDS and len(answer.token_ids) <= 16 for answer in stopped)
    assert all(len(answer.token_ids) == 16 for answer in lengthy)
    for answer in answers:
        assert not set(answer.token_ids[:-1]) & set(STOP_IDS)
        assert len(answer.logprobs) == len(answer.token_ids)
        assert answer.text == tokenizer.decode(answer.token_ids, skip_special_tokens=True)


def test_a_damaged_bundle_is_refused_and_mixed_weights_never_answer(engine, original, perturbed):
    _, bundle = perturbed
    buffer = bundle.buffer.copy()
    buffer[bundle.index[3].offset] ^= 1  # the lowest bit of one element
    with pytest.raises(WeightUpdateError, match=r"sampler\[0\] v5: .*announced .* for v5 \(before: v0\)"):
        engine.load_weights(dataclasses.replace(bundle, buffer=buffer))
    with pytest.raises(WeightUpdateError, match="v5"):
        engine.generate(requests(1), GREEDY)
    assert engine.load_weights(original) == original.checksum
    assert engine.generate(requests(1), GREEDY)


def test_a_bundle_that_lacks_a_weight_or_has_the_wrong_shape_is_refused(engine, perturbed):
    _, bundle = perturbed
    lacking = dataclasses.replace(bundle, index=bundle.index[:-1])
    with pytest.raises(WeightUpdateError):
        engine.load_weights(lacking)
    wrong = dataclasses.replace(bundle.index[0], shape=(bundle.index[0].shape[0] * 2, bundle.index[0].shape[1] // 2))
    with pytest.raises(WeightUpdateError):
        engine.load_weights(dataclasses.replace(bundle, index=(wrong, *bundle.index[1:])))


def test_a_context_without_room_for_the_answer_is_refused(engine):
    with pytest.raises(RoleError, match=r"context of 90 tokens \+ sampling.max_new_tokens=16 exceeds .* 96 tokens"):
        engine.generate([SampleRequest(tuple(range(30, 120)), seed=0)], SamplingSpec(16))


def test_no_request_gives_no_answer(engine):
    assert engine.generate([], GREEDY) == []


def test_a_packed_copy_of_older_weights_is_found(started):
    if not isinstance(started, VllmEngine):
        pytest.skip("only vLLM packs weights")
    from negalign_ray.engines.vllm_loader import pack, packable_layers, stale_layers

    layers = packable_layers(started._model)
    assert len(layers) == 2 * 4 + 1  # qkv, o, gate_up and down of two layers, and the tied head
    assert stale_layers(layers, seed=0) == []
    name, layer = layers[2]
    with torch.inference_mode():
        layer.weight.mul_(1 + 2**-20)
    assert stale_layers(layers, seed=0) == [name]
    pack(layers)
    assert stale_layers(layers, seed=0) == []


def test_starting_vllm_neither_pins_the_process_nor_takes_its_thread_setting_away(started):
    assert os.sched_getaffinity(0) == AFFINITY
    torch.set_num_threads(1)
    assert torch.get_num_threads() == 1
    assert "libtcmalloc" not in os.environ.get("LD_PRELOAD", "")


def test_a_folder_without_a_model_and_tensor_parallelism_are_refused(tmp_path):
    with pytest.raises(ModelError, match="not a model folder"):
        VllmEngine(tmp_path, max_model_len=96, stop_ids=(), **SETTINGS)
    config = SamplersConfig(tensor_parallel_size=2)
    with pytest.raises(ModelError, match="tensor_parallel_size=2"):
        VllmEngine(tmp_path, config=config, dtype="float32", seed=0, max_model_len=96, stop_ids=())


def test_the_nucleus_keeps_the_smallest_set_that_reaches_its_mass():
    probs = torch.tensor([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
    assert _nucleus(probs, 0.6).tolist() == [pytest.approx([0, 0.5, 0.3]), pytest.approx([0, 0, 0.8])]


def test_draws_follow_the_distribution():
    logprobs = torch.tensor([0.5, 0.3, 0.2]).log().repeat(3000, 1)
    generators = [torch.Generator().manual_seed(i) for i in range(3000)]
    counts = torch.bincount(_draw(logprobs, generators, SamplingSpec(1)), minlength=3) / 3000
    assert counts.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.03)  # 3 standard deviations

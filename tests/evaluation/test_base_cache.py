"""The base is asked and priced once; a later call asks for what is new only."""

import pytest

from negalign_ray.evaluation.base_cache import BaseCache
from negalign_ray.evaluation.measure import Answered
from negalign_ray.evaluation.pricing import PriceBook
from negalign_ray.records import Generation, Group, Prompt, Response, Role, SampleRequest, SamplingSpec

SPEC = SamplingSpec(4, temperature=0.0)
REQUESTS = [SampleRequest((1, 2), seed=7), SampleRequest((3,), seed=8)]
ANSWERED = Answered((Generation((5, 6), (-0.1, -0.2), "stop", "so"),), (Generation((9,), (-1.0,), "length", "é"),))


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    return BaseCache(tmp_path / "base", tmp_path / "model", engine="vllm", dtype="float32")


def must_not_answer():
    raise AssertionError("the answers were kept")


def group(prompt, *answers):
    responses = tuple(Response(Role.SAMPLE, ids, "") for ids in answers)
    return Group(0, Prompt(0, "", (("user", ""),), prompt, ()), responses)


def counting(asked):
    def price(groups):
        asked.append([response.token_ids for one in groups for response in one.responses])
        return PriceBook.of(groups, lambda merged: [[-float(len(r.token_ids)) for r in g.responses] for g in merged])

    return price


def test_answers_are_given_once_and_read_back_without_their_log_probs(cache):
    first = cache.answered(REQUESTS, SPEC, num_harmful=1, answer=lambda: ANSWERED)
    again = cache.answered(REQUESTS, SPEC, num_harmful=1, answer=must_not_answer)
    assert first is ANSWERED
    assert [g.text for g in (*again.harmful, *again.benign)] == ["so", "é"]
    assert again.harmful[0].token_ids == (5, 6)
    assert again.benign[0].finish_reason == "length"


def test_other_prompts_other_sampling_or_another_model_are_answered_anew(cache, tmp_path):
    cache.answered(REQUESTS, SPEC, num_harmful=1, answer=lambda: ANSWERED)
    for requests, spec in ((REQUESTS[:1], SPEC), (REQUESTS, SamplingSpec(5, temperature=0.0))):
        with pytest.raises(AssertionError, match="were kept"):
            cache.answered(requests, spec, num_harmful=1, answer=must_not_answer)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(AssertionError, match="were kept"):
        cache.answered(REQUESTS, SPEC, num_harmful=1, answer=must_not_answer)


def test_only_responses_without_a_price_are_priced(cache):
    asked = []
    book = cache.priced([group((1,), (5,), (5, 6))], counting(asked))
    assert book.logprobs([group((1,), (5, 6), (5,))]) == [[-2.0, -1.0]]
    again = cache.priced([group((1,), (5,), (5, 6, 7)), group((2,), (5,))], counting(asked))
    assert again.logprobs([group((1,), (5,), (5, 6, 7)), group((2,), (5,))]) == [[-1.0, -3.0], [-1.0]]
    assert asked == [[(5,), (5, 6)], [(5, 6, 7), (5,)]], "(5,) after another prompt is another answer"


def test_nothing_is_priced_when_everything_is_known(cache):
    cache.priced([group((1,), (5,))], counting([]))
    asked = []
    assert cache.priced([group((1,), (5,))], counting(asked)).logprobs([group((1,), (5,))]) == [[-1.0]]
    assert asked == []

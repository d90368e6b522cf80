"""A model is asked and priced once, part by part; a later call asks for what is missing only."""

import pytest

from negalign_ray.config import HeadConfig
from negalign_ray.evaluation import model_cache
from negalign_ray.evaluation.model_cache import GROUPS_PER_CALL, PROMPTS_PER_CALL, ModelCache, ScoreCache
from negalign_ray.records import Generation, Group, Prompt, Response, Role, SampleRequest, SamplingSpec

SPEC = SamplingSpec(4, temperature=0.0)
REQUESTS = [SampleRequest((1, 2), seed=7), SampleRequest((3,), seed=8)]
HEADS = [HeadConfig(name=name, kind="python", target=f"m:{name}") for name in ("harm", "kind")]


class Killed(Exception):
    """What ends an evaluation half-way."""


class Engine:
    """Answers each request with its context; dies at the call numbered `dies_at`."""

    def __init__(self, *, dies_at=None):
        self.calls, self.dies_at = [], dies_at

    def __call__(self, requests, spec):
        self.calls.append(len(requests))
        if len(self.calls) == self.dies_at:
            raise Killed
        return [
            Generation(request.context_ids, (-0.5,) * len(request.context_ids), "stop", f"é{request.seed}")
            for request in requests
        ]


@pytest.fixture
def cache(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    return ModelCache(tmp_path / "kept", tmp_path / "model", engine="vllm", dtype="float32")


def must_not_be_asked(*_):
    raise AssertionError("it was kept")


def group(prompt, *answers):
    responses = tuple(Response(Role.SAMPLE, ids, "") for ids in answers)
    return Group(0, Prompt(0, "", (("user", ""),), prompt, ()), responses)


def counting(asked, *, dies_at=None):
    def measure(groups):
        asked.append([response.token_ids for one in groups for response in one.responses])
        if len(asked) == dies_at:
            raise Killed
        return [[-float(len(response.token_ids)) for response in one.responses] for one in groups]

    return measure


def test_answers_are_given_once_and_read_back_without_their_log_probs(cache):
    first = cache.answers(REQUESTS, SPEC, generate=Engine())
    again = cache.answers(REQUESTS, SPEC, generate=must_not_be_asked)
    assert [answer.logprobs for answer in first] == [(-0.5, -0.5), (-0.5,)]
    assert again == [Generation((1, 2), (), "stop", "é7"), Generation((3,), (), "stop", "é8")]


def test_other_prompts_other_sampling_or_another_model_are_answered_anew(cache, tmp_path):
    cache.answers(REQUESTS, SPEC, generate=Engine())
    for requests, spec in ((REQUESTS[:1], SPEC), (REQUESTS, SamplingSpec(5, temperature=0.0))):
        with pytest.raises(AssertionError, match="was kept"):
            cache.answers(requests, spec, generate=must_not_be_asked)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(AssertionError, match="was kept"):
        cache.answers(REQUESTS, SPEC, generate=must_not_be_asked)


def test_answers_that_were_cut_short_go_on_where_they_stopped(cache):
    requests = [SampleRequest((n,), seed=n) for n in range(2 * PROMPTS_PER_CALL + 3)]
    with pytest.raises(Killed):
        cache.answers(requests, SPEC, generate=Engine(dies_at=3))
    second = Engine()
    answers = cache.answers(requests, SPEC, generate=second)
    assert second.calls == [3]
    assert [answer.token_ids for answer in answers] == [request.context_ids for request in requests]


def test_only_responses_without_a_price_are_priced(cache):
    asked = []
    book = cache.book([group((1,), (5,), (5, 6))], measure=counting(asked))
    assert book.logprobs([group((1,), (5, 6), (5,))]) == [[-2.0, -1.0]]
    again = cache.book([group((1,), (5,), (5, 6, 7)), group((2,), (5,))], measure=counting(asked))
    assert again.logprobs([group((1,), (5,), (5, 6, 7)), group((2,), (5,))]) == [[-1.0, -3.0], [-1.0]]
    assert asked == [[(5,), (5, 6)], [(5, 6, 7), (5,)]], "(5,) after another prompt is another answer"
    assert cache.book([group((1,), (5,))], measure=must_not_be_asked).logprobs([group((1,), (5,))]) == [[-1.0]]


def test_prices_that_were_cut_short_go_on_where_they_stopped(cache):
    groups = [group((n,), (5,)) for n in range(GROUPS_PER_CALL + 2)]
    with pytest.raises(Killed):
        cache.book(groups, measure=counting([], dies_at=2))
    asked = []
    assert len(cache.book(groups, measure=counting(asked)).prices) == GROUPS_PER_CALL + 2
    assert asked == [[(5,), (5,)]]


def test_entropies_are_no_prices(cache):
    cache.book([group((1,), (5,))], measure=counting([]))
    asked = []
    cache.book([group((1,), (5,))], what="entropies", measure=counting(asked))
    assert asked == [[(5,)]]


def score_by(asked):
    def score(pairs):
        asked.append(list(pairs))
        return [{"harm": float(len(answer)), "kind": -1.0} for _, answer in pairs]

    return score


def test_a_pair_is_scored_once_by_every_head(tmp_path):
    cache, asked = ScoreCache(tmp_path), []
    pairs = [("p", "a"), ("p", "abc"), ("p", "a")]
    assert cache.scores(pairs, HEADS, score=score_by(asked)) == {"harm": [1.0, 3.0, 1.0], "kind": [-1.0] * 3}
    assert cache.scores([*pairs, ("q", "a")], HEADS, score=score_by(asked))["harm"] == [1.0, 3.0, 1.0, 1.0]
    assert asked == [[("p", "a"), ("p", "abc")], [("q", "a")]]


def test_a_head_with_other_settings_scores_anew(tmp_path):
    asked = []
    ScoreCache(tmp_path).scores([("p", "a")], HEADS, score=score_by(asked))
    other = [HEADS[0], HEADS[1].model_copy(update={"target": "m:other"})]
    ScoreCache(tmp_path).scores([("p", "a")], other, score=score_by(asked))
    assert len(asked) == 2


def test_a_judge_that_was_fitted_again_in_its_folder_scores_anew(tmp_path):
    folder, asked = tmp_path / "judge", []
    folder.mkdir()
    heads = [HeadConfig(name="harm", kind="linear", target=str(folder))]
    for text in ("{}", "{ }"):
        (folder / "linear_head.json").write_text(text)
        for _ in range(2):
            ScoreCache(tmp_path).scores([("p", "a")], heads, score=score_by(asked))
    assert len(asked) == 2


def test_no_answers_and_no_pairs_ask_nobody(tmp_path, cache):
    assert cache.answers([], SPEC, generate=must_not_be_asked) == []
    assert ScoreCache(tmp_path).scores([], HEADS, score=must_not_be_asked) == {"harm": [], "kind": []}


def test_a_part_is_never_larger_than_a_deadline_was_meant_for():
    assert [len(part) for part in model_cache.in_parts(range(5), 2)] == [2, 2, 1]

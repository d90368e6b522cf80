"""The scorer's gate and batching, and the reference's memory, as real actors."""

from dataclasses import replace

import pytest
import ray

from negalign_ray.actors.reference import Reference
from negalign_ray.actors.scorer import Scorer
from negalign_ray.config import HeadConfig, RewardGate
from negalign_ray.records import Group, Prompt, Response, Role

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ray_cluster")]
HEADS = (
    HeadConfig(name="words", kind="python", target="tests.actors.heads:word_count"),
    HeadConfig(name="once", kind="python", target="tests.actors.heads:only_once"),
)


def make_group(order_id: int = 0) -> Group:
    negative = Response(Role.NEGATIVE, (40, 41, 42), "a very long human negative that no gate may drop")
    short = Response(Role.SAMPLE, (43, 44), "short answer", weight_version=0, finish_reason="stop")
    long = Response(
        Role.SAMPLE, (45, 46), "a much longer answer of six words", weight_version=0, finish_reason="length"
    )
    prompt = Prompt(order_id, "hello", (("user", "hello"),), (30, 31), (negative,))
    return Group(order_id, prompt, (negative, short, long))


def score(scorer, groups):
    (cards, _, num_pairs), *scored = ray.get(scorer.score.options(num_returns=len(groups) + 1).remote(*groups))
    return cards, num_pairs, scored


@pytest.fixture(scope="module")
def make_scorer(toy_model, tmp_path_factory):
    from negalign_ray.settings import load_config

    config = load_config(preset="quickstart", overrides=[f"run.dir={tmp_path_factory.mktemp('scorer')}"])

    def make(gate: RewardGate | None):
        sampling = config.sampling.model_copy(update={"reward_gate": gate})
        return Scorer.options(num_cpus=0, max_concurrency=16).remote(
            config.model_copy(update={"sampling": sampling}), heads=HEADS, rank=0
        )

    return make


def test_every_response_gets_every_head_and_equal_pairs_are_scored_once(make_scorer):
    cards, num_pairs, scored = score(make_scorer(None), [make_group(0), make_group(1)])
    assert num_pairs == 6
    assert [response.rewards for response in scored[1].responses] == [
        {"words": 10.0, "once": 10.0}, {"words": 2.0, "once": 2.0}, {"words": 7.0, "once": 7.0}
    ]  # fmt: skip
    assert cards[0].rewards["words", "sample"] == 4.5


def test_a_carried_response_keeps_its_scores_and_one_that_lacks_a_head_is_scored_again(make_scorer):
    negative, short, long = make_group().responses
    carried = replace(short, carried=True, rewards={"words": -5.0, "once": -6.0})
    partly = replace(long, carried=True, rewards={"words": -5.0})
    group = replace(make_group(), responses=(negative, carried, partly))
    _, num_pairs, scored = score(make_scorer(None), [group])
    assert num_pairs == 2
    assert [response.rewards["words"] for response in scored[0].responses] == [10.0, -5.0, 7.0]


def test_the_gate_drops_samples_above_its_bound_and_never_human_responses(make_scorer):
    cards, _, scored = score(make_scorer(RewardGate(head="words", max_score=6.0)), [make_group()])
    assert [response.role for response in scored[0].responses] == [Role.NEGATIVE, Role.SAMPLE]
    assert [sample.stopped for sample in cards[0].fresh_samples] == [True]


def test_calls_that_arrive_together_get_their_own_scores_back(make_scorer):
    scorer = make_scorer(None)
    calls = [scorer.score_pairs.remote([("p", "word " * (number + 1))]) for number in range(8)]
    assert [rows[0]["words"] for rows in ray.get(calls)] == [float(number + 1) for number in range(8)]


def test_a_reference_prices_under_the_bare_prompt_and_remembers(make_scorer, toy_model, tmp_path):
    from negalign_ray.settings import load_config

    config = load_config(preset="quickstart", overrides=[f"run.dir={tmp_path}", "references.cache_size=3"])
    reference = Reference.options(num_cpus=0).remote(
        config, names=("rpos", "rneg"), rank=0, model_path=str(toy_model), dtype="float32"
    )

    def price(*groups):
        (_, _, num_tokens, counts), *priced = ray.get(
            reference.price.options(num_returns=len(groups) + 1).remote(*groups)
        )
        assert counts["num_prices"] == sum(len(group.responses) for group in groups)
        return num_tokens, priced

    group = make_group()
    computed, (first,) = price(group)
    assert computed == group.num_tokens == 2 + 3 + 2 + 2
    again, (second,) = price(replace(group, order_id=5))
    assert again == 0, "nothing is computed twice"
    assert [r.ref_logprobs for r in first.responses] == [r.ref_logprobs for r in second.responses]
    assert all(set(r.ref_logprobs) == {"rpos", "rneg"} for r in first.responses)
    assert all(r.ref_logprobs["rpos"] == r.ref_logprobs["rneg"] < 0 for r in first.responses)

    version, prices = ray.get(reference.prices.remote())
    assert version == 0
    for made_by, num_computed in ((3, group.num_tokens), (0, 0)):  # it holds no snapshot of version 3
        ray.get(reference.remember.remote([(made_by, prices)]))
        assert price(group)[0] == num_computed

"""Signs of a collapse, by hand: only fresh own samples count, and no split over ranks changes a figure."""

from collections import defaultdict

import pytest
import torch

from negalign_ray.loops.merge import merge_ranks
from negalign_ray.loops.roles import StepReport
from negalign_ray.loops.vitals import logprob_of, sample_vitals
from negalign_ray.records import Group, GroupCard, Prompt, Response, ResponseCard, Role

PROMPT = Prompt(0, "p", (("user", "p"),), (5,), ())
HUMAN = Response(Role.NEGATIVE, (1, 1, 1, 1, 1, 1), "no", ref_logprobs={"rpos": -9.0, "rneg": -9.0})


def sample(*token_ids: int, ref: float = 0.0, logprobs: tuple[float, ...] | None = None, **more) -> Response:
    return Response(
        Role.SAMPLE,
        token_ids,
        "yes",
        weight_version=0,
        sampler_logprobs=logprobs,
        ref_logprobs={"rpos": ref, "rneg": 99.0},
        **more,
    )


def vitals(groups, logprobs, *, references=True) -> tuple[dict, dict]:
    sums, counts = defaultdict(float), defaultdict(int)
    sample_vitals(sums, counts, groups, torch.tensor(logprobs), references=references)
    return dict(sums), dict(counts)


def test_kl_entropy_and_repetition_are_those_of_fresh_samples():
    loop = sample(1, 2, 1, 2, 1, 2, 1, ref=-10.0, logprobs=(-0.5,) * 7)  # two of four 4-grams repeat
    short = sample(3, 4, 5, ref=-3.0, logprobs=(-1.0, -2.0, -3.0))
    carried = sample(9, 9, 9, 9, 9, 9, ref=-50.0, carried=True)
    sums, counts = vitals([Group(0, PROMPT, (HUMAN, loop, carried)), Group(1, PROMPT, (short,))], [-7, -8, -1, -4])
    assert sums["learner/kl_nats"] == pytest.approx((-8 + 10) + (-4 + 3))
    assert counts["learner/kl_nats"] == 7 + 3
    assert sums["sampler/entropy_nats"] == pytest.approx(3.5 + 6.0)
    assert counts["sampler/entropy_nats"] == 10
    assert (sums["sampler/repetition_frac"], counts["sampler/repetition_frac"]) == (0.5, 2)


def test_a_method_without_references_has_no_kl_and_one_without_samples_nothing():
    assert "learner/kl_nats" not in vitals([Group(0, PROMPT, (sample(1),))], [-1.0], references=False)[0]
    assert vitals([Group(0, PROMPT, (HUMAN,))], [-1.0]) == ({}, {})
    assert vitals([], []) == ({}, {})


def test_figures_of_two_ranks_are_means_over_all_samples():
    long, short = sample(1, 2, 3, ref=-3.0), sample(4, ref=-3.0)
    reports = []
    for rank, (response, logprob) in enumerate(((long, -1.5), (short, -2.5))):
        sums, counts = vitals([Group(rank, PROMPT, (response,))], [logprob])
        reports.append(StepReport(0, rank, sums, counts))
    assert merge_ranks(reports)["learner/kl_nats"] == pytest.approx((1.5 + 0.5) / 4)


class OneNatAToken:
    """A learner that finds every token e times less likely than certain."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def no_grad_token_logprobs(self, groups):
        self.calls.append(len(groups))
        return [-torch.ones(len(response.token_ids)) for group in groups for response in group.responses]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_followed_log_prob_is_that_of_all_answers_however_many_ranks_share_them(world_size):
    groups = [Group(n, PROMPT, (sample(*range(n + 1)),)) for n in range(3)]  # 1, 2 and 3 tokens, and a prompt each
    learners = [OneNatAToken() for _ in range(world_size)]
    parts = [
        logprob_of(learner, groups, rank=rank, world_size=world_size, micro_batch_tokens=3)
        for rank, learner in enumerate(learners)
    ]
    assert (sum(total for total, _ in parts), sum(num for _, num in parts)) == (-6.0, 6)
    assert len({len(learner.calls) for learner in learners}) == 1, "every rank takes part in every forward"


def test_a_card_keeps_the_opening_of_a_sample_and_of_no_human_answer():
    card = Group(0, PROMPT, (HUMAN, sample(7, 8, 9, 10), sample(5, carried=True))).card()
    assert [response.opening for response in card.responses] == [(), (7, 8, 9), (5,)]
    assert [sample.opening for sample in card.fresh_samples] == [(7, 8, 9)]
    assert GroupCard(0, 0, 1, (ResponseCard(Role.NEGATIVE, 1),), prompt_id=0).fresh_samples == ()

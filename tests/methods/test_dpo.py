"""DPO: hand-computed values, gradients, pairs and limits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from negalign_ray.config import D2OConfig, DPOConfig
from negalign_ray.methods import dpo
from negalign_ray.records import Role

from .cases import LOG2, Row, gradient, logprobs, metric, negative, positive, run, sample, tensors, value, weights

CONFIG = DPOConfig(beta=0.1)
quick = settings(max_examples=50, deadline=None)


def sp(z: float) -> float:
    return math.log1p(math.exp(-z))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([positive(2), negative(-3)], 0.4741),  # sp(0.5)
        ([positive(-3), negative(2)], 0.9741),  # sp(-0.5)
        ([positive(-40, ref=-42), negative(-33, ref=-30)], 0.4741),
        ([positive(10), negative(-10)], 0.1269),  # sp(2)
    ],
)
def test_loss_is_the_softplus_of_the_margin(rows, expected):
    assert value("dpo", rows, CONFIG) == pytest.approx(expected, abs=5e-5)


@quick
@given(lp=logprobs, other=logprobs, beta=weights)
def test_policy_equal_to_the_reference_costs_log_2_exactly(lp, other, beta):
    assert value("dpo", [positive(lp, ref=lp), negative(other, ref=other)], DPOConfig(beta=beta)) == LOG2


def test_the_reference_is_rpos():
    rows = [Row(Role.POSITIVE, -10, rpos=-12, rneg=-99), Row(Role.NEGATIVE, -10, rpos=-7, rneg=50)]
    assert value("dpo", rows, CONFIG) == pytest.approx(sp(0.5))


def test_several_of_either_role_give_the_mean_over_all_pairs():
    winners, losers = [1.0, -4.0], [-2.0, 3.0, 0.5]
    rows = [positive(lp) for lp in winners] + [negative(lp) for lp in losers]
    margins = [0.1 * (w - loser) for w in winners for loser in losers]
    assert value("dpo", rows, CONFIG) == pytest.approx(sum(map(sp, margins)) / 6, rel=1e-12)
    assert metric("dpo", "margin_nats", rows, CONFIG) == pytest.approx(sum(margins) / 6)
    assert metric("dpo", "pair_accuracy_frac", rows, CONFIG) == pytest.approx(2 / 6)  # 1 > -2 and 1 > 0.5


@quick
@given(winner=logprobs, loser=logprobs, beta=weights)
def test_gradient_raises_the_winner_and_lowers_the_loser_by_the_same_amount(winner, loser, beta):
    groups = tensors([[positive(winner, ref=-100), negative(loser, ref=-100)]])
    w = 1 / (1 + math.exp(beta * (winner - loser)))
    found = gradient("dpo", groups, DPOConfig(beta=beta))[0].tolist()
    assert found == pytest.approx([-beta * w, beta * w], rel=1e-9)


@quick
@given(winner=logprobs, loser=logprobs)
def test_swapping_winner_and_loser_negates_the_margin(winner, loser):
    plain = metric("dpo", "margin_nats", [positive(winner), negative(loser)], CONFIG)
    swapped = metric("dpo", "margin_nats", [positive(loser), negative(winner)], CONFIG)
    assert swapped == pytest.approx(-plain)


@pytest.mark.parametrize("rows", [[], [negative(-3)], [positive(-3)], [positive(-3), sample(-2)]])
def test_a_group_without_a_pair_has_no_loss_gradient_or_metrics(rows):
    groups = tensors([rows, [positive(2), negative(-3)]])
    out = dpo.loss(groups, CONFIG)
    assert out.loss_G.tolist() == pytest.approx([0, sp(0.5)])
    assert (gradient("dpo", groups, CONFIG)[0] == 0).all()
    metrics_G = {key: values_G for key, values_G in out.metrics_G.items() if key != "sample_logratio_nats"}
    assert all(values_G[0].isnan() and values_G[1].isfinite() for values_G in metrics_G.values())


def test_own_samples_are_not_read_unless_they_are_winners():
    rows = [positive(2), negative(-3)]
    assert value("dpo", [*rows, sample(-50)]) == value("dpo", rows)
    assert math.isnan(metric("dpo", "sample_logratio_nats", [*rows, sample(-50)]))


@pytest.mark.parametrize(
    ("winners", "margins"), [("human", [5.0]), ("samples", [4.0, 2.0]), ("human_and_samples", [5.0, 4.0, 2.0])]
)
def test_winners_are_human_answers_own_samples_or_both_over_the_human_negatives(winners, margins):
    rows = [positive(2), sample(1), sample(-1), negative(-3)]
    config = DPOConfig(beta=0.1, winners=winners)
    assert value("dpo", rows, config) == pytest.approx(sum(sp(0.1 * margin) for margin in margins) / len(margins))
    found = gradient("dpo", tensors([rows]), config)[0]
    assert (found[:3] < 0).tolist() == [winners != "samples", winners != "human", winners != "human"]
    assert found[3].item() == pytest.approx(-found[:3].sum().item())


def test_one_own_sample_as_winner_is_d2o_with_equal_weights():
    rows = [sample(1.5), negative(-3)]
    d2o = value("d2o", rows, D2OConfig(alpha=0.1, beta=0.1))
    assert value("dpo", rows, DPOConfig(beta=0.1, winners="samples")) == pytest.approx(d2o)


def test_metrics_by_hand():
    metrics_G = run("dpo", [[positive(2), negative(-3)]], CONFIG).metrics_G
    assert {key: values.item() for key, values in metrics_G.items() if not values.isnan()} == pytest.approx(
        {
            "positive_nats": 0.2,
            "negative_nats": -0.3,
            "margin_nats": 0.5,
            "positive_logratio_nats": 2.0,
            "negative_logratio_nats": -3.0,
            "pair_accuracy_frac": 1.0,
            "weight_frac": 1 / (1 + math.exp(0.5)),
        }
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("lp", "expected", "slope"), [(-1e6, 1e5, 0.1), (1e6, 0.0, 0.0)])
def test_huge_margins_stay_finite_in_both_directions(dtype, lp, expected, slope):
    groups = tensors([[positive(lp), negative(0)]], dtype=dtype)
    assert dpo.loss(groups, CONFIG).loss_G.item() == pytest.approx(expected)
    assert gradient("dpo", groups, CONFIG)[0].tolist() == pytest.approx([-slope, slope])


@quick
@given(lps=st.lists(logprobs, min_size=2, max_size=6), data=st.data())
def test_order_of_the_responses_does_not_matter(lps, data):
    rows = [positive(lps[0])] + [negative(lp) for lp in lps[1:]]
    assert value("dpo", data.draw(st.permutations(rows))) == pytest.approx(value("dpo", rows), rel=1e-12)

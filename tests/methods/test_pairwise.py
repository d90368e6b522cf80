"""IPO, SLiC, SimPO and SPIN: hand-computed values, gradients, limits, and what they have in common."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from negalign_ray.config import DPOConfig, IPOConfig, SimPOConfig, SLiCConfig, SPINConfig
from negalign_ray.methods import METHODS
from negalign_ray.records import Role

from .cases import LOG2, Row, gradient, logprobs, metric, negative, positive, run, sample, tensors, value, weights

CONFIGS = {
    "ipo": IPOConfig(beta=0.25),
    "slic": SLiCConfig(beta=0.1),
    "simpo": SimPOConfig(beta=2.0, gamma=0.5),
    "spin": SPINConfig(beta=0.1),
}
every_method = pytest.mark.parametrize("name", sorted(CONFIGS))
quick = settings(max_examples=50, deadline=None)


def answer(role: Role, lp: float, *, ref: float = 0.0, length: int = 1) -> Row:
    return Row(role, lp, ref, ref, length)


def loser(name: str, lp: float, *, ref: float = 0.0, length: int = 1) -> Row:
    return answer(Role.SAMPLE if name == "spin" else Role.NEGATIVE, lp, ref=ref, length=length)


def sp(z: float) -> float:
    return math.log1p(math.exp(-z))


# --- values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("winner", "losing", "expected"),
    [((2, 2), (-3, 3), 0.0), ((2, 1), (-3, 3), 1.0), ((0, 1), (0, 1), 4.0), ((-4, 2), (4, 2), 36.0)],
)
def test_ipo_draws_the_token_mean_of_the_log_ratios_to_half_over_beta(winner, losing, expected):
    rows = [positive(winner[0], length=winner[1]), answer(Role.NEGATIVE, losing[0], length=losing[1])]
    assert value("ipo", rows, CONFIGS["ipo"]) == pytest.approx(expected)  # (D' - 2)^2


@pytest.mark.parametrize(
    ("winner", "expected", "slope"), [(2, 0.5, 0.1), (8, 0.0, 0.0), (-3, 1.0, 0.1), (-13, 2.0, 0.1)]
)
def test_slic_is_a_hinge_at_a_margin_of_1(winner, expected, slope):
    groups = tensors([[positive(winner), negative(-3)]])
    assert METHODS["slic"].loss(groups, CONFIGS["slic"]).loss_G.item() == pytest.approx(expected)
    assert gradient("slic", groups, CONFIGS["slic"])[0].tolist() == pytest.approx([-slope, slope])


def test_simpo_is_the_softplus_of_the_token_means_minus_the_target():
    rows = [positive(-4, length=4), answer(Role.NEGATIVE, -6, length=4)]
    assert value("simpo", rows, CONFIGS["simpo"]) == pytest.approx(0.4741, abs=5e-5)  # sp(2 * 0.5 - 0.5)
    assert value("simpo", rows, SimPOConfig(beta=2.0, gamma=1.0)) == pytest.approx(LOG2)


@quick
@given(winner=logprobs, losing=logprobs, beta=weights)
def test_spin_is_dpo_against_the_own_answer(winner, losing, beta):
    own = value("spin", [positive(winner, ref=-50), sample(losing, ref=-40)], SPINConfig(beta=beta))
    human = value("dpo", [positive(winner, ref=-50), negative(losing, ref=-40)], DPOConfig(beta=beta))
    assert own == human


# --- at the reference ------------------------------------------------------------------------------------


@quick
@given(lp=logprobs, other=logprobs)
@pytest.mark.parametrize(("name", "expected"), [("ipo", 4.0), ("slic", 1.0), ("spin", LOG2)])
def test_policy_equal_to_the_reference_costs_what_a_margin_of_0_costs(name, expected, lp, other):
    assert value(name, [positive(lp, ref=lp), loser(name, other, ref=other)], CONFIGS[name]) == pytest.approx(expected)


# --- all -------------------------------------------------------------------------------------------------


@every_method
@quick
@given(winner=st.floats(-3, 3), losing=st.floats(-3, 3), length=st.integers(1, 9))
def test_an_active_pair_is_pulled_apart_by_equal_and_opposite_gradients(name, winner, losing, length):
    """Per token for the methods of token means, so the two lengths are the same here."""
    groups = tensors([[positive(winner, length=length), loser(name, losing, length=length)]])
    pull, push = gradient(name, groups, CONFIGS[name])[0].tolist()
    assert push == pytest.approx(-pull)
    if name == "ipo":  # beyond its target it pulls back
        assert pull == pytest.approx(2 * ((winner - losing) / length - 2) / length, abs=1e-9)
    else:
        assert pull < 0


@every_method
def test_several_winners_and_losers_give_the_mean_over_all_pairs(name):
    winners, losers = [1.0, -4.0], [-2.0, 3.0, 0.5]
    rows = [positive(lp) for lp in winners] + [loser(name, lp) for lp in losers]
    single = [value(name, [positive(w), loser(name, other)], CONFIGS[name]) for w in winners for other in losers]
    assert value(name, rows, CONFIGS[name]) == pytest.approx(sum(single) / 6)
    assert metric(name, "pair_accuracy_frac", rows, CONFIGS[name]) == pytest.approx(2 / 6)


@every_method
def test_a_group_without_a_pair_has_no_loss_gradient_or_metrics(name):
    for rows in ([], [positive(-3)], [loser(name, -3)]):
        groups = tensors([rows, [positive(2), loser(name, -1)]])
        out = METHODS[name].loss(groups, CONFIGS[name])
        assert out.loss_G[0].item() == 0
        assert out.loss_G[1].item() > 0
        assert (gradient(name, groups, CONFIGS[name])[0] == 0).all()
        assert all(values_G[0].isnan() for values_G in out.metrics_G.values())


@every_method
def test_what_is_in_no_pair_is_not_read(name):
    rows = [positive(2), loser(name, -3)]
    other = negative(-50) if name == "spin" else sample(-50)
    assert value(name, [*rows, other], CONFIGS[name]) == value(name, rows, CONFIGS[name])


@pytest.mark.parametrize("name", ["ipo", "slic", "spin"])
def test_the_reference_is_rpos(name):
    rows = [Row(Role.POSITIVE, -10, rpos=-12, rneg=-99), Row(loser(name, 0).role, -10, rpos=-7, rneg=50)]
    assert value(name, rows, CONFIGS[name]) == pytest.approx(value(name, [positive(2), loser(name, -3)], CONFIGS[name]))


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lp", [-1e6, 1e6])
def test_huge_margins_stay_finite_in_both_directions(name, dtype, lp):
    groups = tensors([[positive(lp), loser(name, 0)]], dtype=dtype)
    assert METHODS[name].loss(groups, CONFIGS[name]).loss_G.isfinite().all()
    assert gradient(name, groups, CONFIGS[name]).isfinite().all()


# --- metrics ---------------------------------------------------------------------------------------------


def found(name: str, rows) -> dict[str, float]:
    metrics_G = run(name, [rows], CONFIGS[name]).metrics_G
    return {key: values_G.item() for key, values_G in metrics_G.items() if not values_G.isnan()}


RATIOS = {"positive_logratio_nats": 2.0, "pair_accuracy_frac": 1.0}
TENTHS = {"positive_nats": 0.2, "negative_nats": -0.3, "margin_nats": 0.5}


def test_metrics_by_hand():
    human = [positive(2, length=2), answer(Role.NEGATIVE, -3, length=3)]
    negatives = RATIOS | {"negative_logratio_nats": -3.0}
    assert found("ipo", human) == pytest.approx(
        negatives | {"positive_nats": 0.5, "negative_nats": -0.75, "margin_nats": 2.0}
    )
    assert found("slic", human) == pytest.approx(negatives | TENTHS | {"weight_frac": 1.0})
    own = RATIOS | TENTHS | {"sample_logratio_nats": -3.0, "weight_frac": 1 / (1 + math.exp(0.5))}
    assert found("spin", [positive(2), sample(-3)]) == pytest.approx(own)
    assert found("simpo", human) == pytest.approx(
        {
            "positive_token_nll_nats": -1.0,
            "negative_token_nll_nats": 1.0,
            "margin_nats": 3.5,  # 2 * (1 - (-1)) - 0.5
            "pair_accuracy_frac": 1.0,
            "weight_frac": 1 / (1 + math.exp(3.5)),
        }
    )

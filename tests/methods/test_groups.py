"""What holds for every method (sharding, padding, order), the table of methods, and groups -> tensors."""

import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from negalign_ray.config import Config, DPOConfig
from negalign_ray.errors import MissingReferenceError, NegalignError
from negalign_ray.methods import METHODS, Needs
from negalign_ray.methods.groups import RewardSource, build_group_tensors, masked_mean, metric_mean, neg_log_sigmoid
from negalign_ray.records import Group, Prompt, Response, Role

from .cases import CONFIGS, any_groups, gradient, negative, permuted, positive, sample, tensors, trained_field

ITERATIONS = {"schedule": "interval", "online_from_step": 0, "refresh_every": 1}  # for methods that fit a guide
HEAD = {"name": "reward", "kind": "python", "target": "module:function"}  # for methods that rank by a score
every_method = pytest.mark.parametrize("name", sorted(METHODS))
quick = settings(max_examples=40, deadline=None)
FULL = [
    [negative(-10, reward=-9), positive(-4, reward=5), sample(1, reward=-2), sample(-3, reward=7)],
    [negative(-2, reward=-4), negative(3, reward=-8), sample(5, reward=-1), positive(1, reward=6)],
]
KEEPS_ORDER_OF_TIES = {"clha", "pro"}  # they compare by rank: equal rewards stay in the order of the group


def assert_same(left, right):
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12, equal_nan=True)


def untied(group):
    """The rows of a group, where only the first of equal rewards keeps it."""
    kept = []
    for row in group:
        seen = row.reward in [other.reward for other in kept]
        kept.append(replace(row, reward=math.nan) if seen else row)
    return kept


# --- every method --------------------------------------------------------------------------------------------------


@every_method
@quick
@given(rows=any_groups, data=st.data())
def test_the_sum_over_any_partition_of_groups_is_the_sum_over_all(name, rows, data):
    shard_of = data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    whole = tensors(rows)
    whole_loss_G, whole_gradient_GR = METHODS[name].loss(whole, CONFIGS[name]).loss_G, gradient(name, whole)
    total = torch.zeros((), dtype=torch.float64)
    for shard in range(3):  # a shard may be empty, and pads to its own longest group
        members = [index for index, owner in enumerate(shard_of) if owner == shard]
        part = tensors([rows[index] for index in members], batch=rows)
        part_loss_G = METHODS[name].loss(part, CONFIGS[name]).loss_G
        total = total + part_loss_G.sum()
        assert_same(part_loss_G, whole_loss_G[members])
        assert_same(gradient(name, part), whole_gradient_GR[members, : part.logprobs_GR.shape[1]])
    assert_same(total, whole_loss_G.sum())


@every_method
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e300, -7.0])
@pytest.mark.parametrize(
    "where",
    ["logprobs_GR", "complement_logprobs_GR", "rpos_logprobs_GR", "rneg_logprobs_GR", "reward_GR", "everywhere"],
)
def test_garbage_in_padding_changes_neither_loss_nor_metrics_nor_gradients(name, garbage, where):
    def widened(key, values, fill):
        poison = garbage if where in (key, "everywhere") else fill
        return torch.cat([values.detach(), torch.full((len(values), 2), poison, dtype=values.dtype)], dim=1)

    clean = tensors([*FULL, []])
    padded = replace(
        clean,
        logprobs_GR=widened("logprobs_GR", clean.logprobs_GR, 0.0).requires_grad_(),
        complement_logprobs_GR=widened("complement_logprobs_GR", clean.complement_logprobs_GR, 0.0).requires_grad_(),
        rpos_logprobs_GR=widened("rpos_logprobs_GR", clean.rpos_logprobs_GR, 0.0),
        rneg_logprobs_GR=widened("rneg_logprobs_GR", clean.rneg_logprobs_GR, 0.0),
        reward_GR=widened("reward_GR", clean.reward_GR, math.nan),
        lengths_GR=torch.cat([clean.lengths_GR, torch.zeros(3, 2, dtype=torch.long)], dim=1),
        **{
            each.name: torch.cat([getattr(clean, each.name), torch.zeros(3, 2, dtype=torch.bool)], dim=1)
            for each in fields(clean)
            if each.name.startswith("is_")
        },
    )
    expected, found = METHODS[name].loss(clean, CONFIGS[name]), METHODS[name].loss(padded, CONFIGS[name])
    assert_same(found.loss_G, expected.loss_G)
    assert found.metrics_G.keys() == expected.metrics_G.keys()
    for key, values_G in expected.metrics_G.items():
        assert_same(found.metrics_G[key], values_G)
    found_gradient = gradient(name, padded)
    assert_same(found_gradient[:, :4], gradient(name, clean))
    assert (found_gradient[:, 4:] == 0).all()


@every_method
@quick
@given(rows=any_groups, data=st.data())
def test_order_of_responses_does_not_matter(name, rows, data):
    plain = tensors([untied(group) for group in rows] if name in KEEPS_ORDER_OF_TIES else rows)
    order = torch.tensor(data.draw(st.permutations(range(plain.logprobs_GR.shape[1]))), dtype=torch.long)
    moved = permuted(plain, order)
    expected, found = METHODS[name].loss(plain, CONFIGS[name]), METHODS[name].loss(moved, CONFIGS[name])
    assert_same(found.loss_G, expected.loss_G)
    for key, values_G in expected.metrics_G.items():
        assert_same(found.metrics_G[key], values_G)
    assert_same(gradient(name, moved), gradient(name, plain)[:, order])


@every_method
@quick
@given(rows=any_groups)
def test_output_is_one_value_per_group_and_metrics_carry_no_gradient(name, rows):
    out = METHODS[name].loss(tensors(rows), CONFIGS[name])
    assert out.loss_G.shape == (len(rows),)
    assert out.loss_G.isfinite().all()
    for values_G in out.metrics_G.values():
        assert values_G.shape == (len(rows),)
        assert not values_G.requires_grad
        assert not values_G.isinf().any()


@every_method
def test_no_groups_at_all_still_take_part_in_backward(name):
    logprobs_N = torch.zeros(0, requires_grad=True)
    groups = build_group_tensors([], logprobs_N, complements_N=logprobs_N)
    out = METHODS[name].loss(groups, CONFIGS[name])
    assert groups.logprobs_GR.shape == (0, 0)
    assert out.loss_G.shape == (0,)
    out.loss_G.sum().backward()
    assert logprobs_N.grad is not None


@every_method
def test_fully_padded_groups_have_zero_loss_and_zero_gradient(name):
    groups = replace(
        tensors(FULL), **dict.fromkeys(("is_negative_GR", "is_positive_GR", "is_sample_GR"), torch.zeros(2, 4) > 0)
    )
    out = METHODS[name].loss(groups, CONFIGS[name])
    assert out.loss_G.tolist() == [0, 0]
    assert (gradient(name, groups) == 0).all()
    assert all(values_G.isnan().all() for values_G in out.metrics_G.values())


@every_method
def test_analytic_gradients_agree_with_finite_differences(name):
    groups, field = tensors(FULL), trained_field(name)

    def loss_of(values_GR):
        return METHODS[name].loss(replace(groups, **{field: values_GR}), CONFIGS[name]).loss_G

    assert torch.autograd.gradcheck(loss_of, (getattr(groups, field),))


@every_method
def test_one_small_step_against_the_gradient_lowers_the_loss(name):
    groups, field = tensors(FULL), trained_field(name)
    stepped = replace(groups, **{field: getattr(groups, field) - 0.1 * gradient(name, groups)})
    before_G, after_G = (METHODS[name].loss(each, CONFIGS[name]).loss_G for each in (groups, stepped))
    assert (after_G < before_G).all()


# --- small helpers -------------------------------------------------------------------------------------------------


def test_masked_mean_of_nothing_is_zero_and_metric_mean_of_nothing_is_nan():
    values = torch.tensor([[1.0, 3.0, math.inf], [math.nan, 5.0, 2.0]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert masked_mean(values, mask).tolist() == [2.0, 0.0]
    assert metric_mean(values, mask)[0] == 2.0
    assert metric_mean(values, mask)[1].isnan()


@pytest.mark.parametrize(
    ("z", "expected"),
    [
        (0, math.log(2)),
        (-1000, 1000),
        (1000, 0),
        (21, math.log1p(math.exp(-21))),
        (-21, 21 + math.log1p(math.exp(-21))),
    ],
)
def test_neg_log_sigmoid_is_exact_at_zero_and_at_the_limits(z, expected):
    assert neg_log_sigmoid(torch.tensor(z, dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-14, abs=0)


# --- the table of methods ------------------------------------------------------------------------------------------


def test_every_method_of_the_config_is_in_the_table_under_its_own_name():
    for name, method in METHODS.items():
        assert method.name == name
        config = Config(method={"name": name}, scorers={"heads": [HEAD]}, sampling=ITERATIONS)
        assert config.method.name == name
        assert CONFIGS[name].name == name


@pytest.mark.parametrize(
    ("name", "negatives", "positives", "samples", "references", "more"),
    [
        ("d2o", True, False, "required", True, {}),
        ("neat", False, False, "required", False, {"reward": True, "candidates": True}),
        ("clha", False, False, "optional", False, {"reward": True}),
        ("dpo", True, True, "unused", True, {}),
        ("ipo", True, True, "unused", True, {}),
        ("slic", True, True, "unused", True, {}),
        ("simpo", True, True, "unused", False, {}),
        ("spin", False, True, "required", True, {}),
        ("ld_align", False, True, "required", True, {}),
        ("rrhf", False, False, "optional", False, {"reward": True}),
        ("pro", False, False, "optional", False, {"reward": True}),
        ("npo", True, False, "unused", True, {}),
        ("ga", True, False, "unused", False, {}),
        ("unlikelihood", True, False, "unused", False, {"complements": True}),
        ("sft", False, True, "unused", False, {}),
    ],
)
def test_needs_of_each_method(name, negatives, positives, samples, references, more):
    needs = Needs(negatives=negatives, positives=positives, samples=samples, references=references, **more)
    assert METHODS[name].needs(CONFIGS[name]) == needs


@pytest.mark.parametrize(
    ("winners", "positives", "samples"),
    [("human", True, "unused"), ("samples", False, "required"), ("human_and_samples", True, "required")],
)
def test_the_winners_of_dpo_decide_what_it_needs(winners, positives, samples):
    needs = Needs(negatives=True, positives=positives, samples=samples, references=True)
    assert METHODS["dpo"].needs(DPOConfig(winners=winners)) == needs


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("d2o", "negative"),
        ("d2o", "sample"),
        *((name, role) for name in ("dpo", "ipo", "slic", "simpo") for role in ("positive", "negative")),
        *((name, role) for name in ("spin", "ld_align") for role in ("positive", "sample")),
        *((name, "negative") for name in ("npo", "ga", "unlikelihood")),
        ("sft", "positive"),
    ],
)
def test_a_method_has_no_loss_without_a_role_that_it_needs(name, role):
    without = [[row for row in group if row.role != role] for group in FULL]
    assert METHODS[name].loss(tensors(without), CONFIGS[name]).loss_G.tolist() == [0, 0]


@pytest.mark.parametrize(
    "name", [name for name in sorted(METHODS) if not METHODS[name].needs(CONFIGS[name]).references]
)
def test_a_method_that_needs_no_references_does_not_read_them(name):
    groups = tensors(FULL)
    poisoned = replace(
        groups, rpos_logprobs_GR=groups.rpos_logprobs_GR * math.nan, rneg_logprobs_GR=groups.rneg_logprobs_GR * math.nan
    )
    assert_same(METHODS[name].loss(poisoned, CONFIGS[name]).loss_G, METHODS[name].loss(groups, CONFIGS[name]).loss_G)


# --- groups -> tensors -----------------------------------------------------------------------------------------------


def response(role, num_tokens=1, *, refs=(0.0, 0.0), **rewards) -> Response:
    ref_logprobs = dict(zip(("rpos", "rneg"), refs, strict=True)) if refs else {}
    return Response(role=role, token_ids=(5,) * num_tokens, text="", rewards=rewards, ref_logprobs=ref_logprobs)


def group(*responses: Response, order_id: int = 0) -> Group:
    prompt = Prompt(prompt_id=40 + order_id, text="q", messages=(("user", "q"),), token_ids=(1, 2), responses=())
    return Group(order_id=order_id, prompt=prompt, responses=responses)


def three_groups() -> list[Group]:
    return [
        group(response(Role.NEGATIVE, 3, refs=(-1, -2), harm=0.9), response(Role.SAMPLE, 4, refs=(-3, -4))),
        group(order_id=1),
        group(
            response(Role.POSITIVE, 5, refs=(-5, -6), harm=0.1, help=2.0),
            response(Role.NEGATIVE, 6, refs=(-7, -8)),
            response(Role.SAMPLE, 7, refs=(-9, -10), help=-1.0),
            order_id=2,
        ),
    ]


def test_responses_are_laid_out_group_by_group():
    built = build_group_tensors(three_groups(), torch.tensor([-11.0, -12, -13, -14, -15]))
    assert built.logprobs_GR.tolist() == [[-11, -12, 0], [0, 0, 0], [-13, -14, -15]]
    assert built.lengths_GR.tolist() == [[3, 4, 1], [1, 1, 1], [5, 6, 7]]
    assert built.rpos_logprobs_GR.tolist() == [[-1, -3, 0], [0, 0, 0], [-5, -7, -9]]
    assert built.rneg_logprobs_GR.tolist() == [[-2, -4, 0], [0, 0, 0], [-6, -8, -10]]
    assert built.is_negative_GR.tolist() == [[True, False, False], [False] * 3, [False, True, False]]
    assert built.is_sample_GR.tolist() == [[False, True, False], [False] * 3, [False, False, True]]
    assert built.is_positive_GR.tolist() == [[False] * 3, [False] * 3, [True, False, False]]
    assert built.mask_GR.sum(-1).tolist() == [2, 0, 3]
    assert built.lengths_GR.dtype == torch.int64


def test_the_chosen_head_is_laid_out_with_its_sign_and_nan_where_it_gave_no_score():
    nan = math.nan
    groups = three_groups()
    cards = [each.card() for each in groups]
    built = build_group_tensors(groups, torch.zeros(5), reward=RewardSource("harm", sign=-1.0), batch=cards)
    assert_same(built.reward_GR, torch.tensor([[-0.9, nan, nan], [nan] * 3, [-0.1, nan, nan]]))
    assert [len(rewards) for rewards in built.batch_rewards] == [2, 0, 3]
    assert (built.batch_rewards[0][0], built.batch_rewards[2][0]) == (-0.9, -0.1)


def test_a_part_of_the_batch_still_knows_the_rewards_of_the_whole_batch():
    groups = three_groups()
    cards = [each.card() for each in groups]
    part = build_group_tensors(groups[:1], torch.zeros(2), reward=RewardSource("help"), batch=cards)
    assert part.reward_GR.shape == (1, 2)
    assert part.batch_rewards[2] == pytest.approx((2.0, math.nan, -1.0), nan_ok=True)


def test_complements_are_laid_out_beside_the_log_probs_and_are_nan_where_the_learner_made_none():
    groups, logprobs_N = three_groups(), torch.tensor([-11.0, -12, -13, -14, -15])
    built = build_group_tensors(groups, logprobs_N, complements_N=logprobs_N / 2)
    assert built.complement_logprobs_GR.tolist() == [[-5.5, -6, 0], [0, 0, 0], [-6.5, -7, -7.5]]
    absent = build_group_tensors(groups, logprobs_N).complement_logprobs_GR
    assert absent[0].isnan().tolist() == [True, True, False]


def test_the_layout_passes_each_gradient_back_to_its_own_response():
    logprobs_N = torch.tensor([-11.0, -12, -13, -14, -15], requires_grad=True)
    built = build_group_tensors(three_groups(), logprobs_N)
    weights_GR = torch.tensor([[1.0, 2, 99], [99, 99, 99], [3, 4, 5]])
    (built.logprobs_GR * weights_GR).sum().backward()
    assert logprobs_N.grad.tolist() == [1, 2, 3, 4, 5]


@every_method
def test_a_loss_over_built_groups_equals_the_loss_over_each_group_alone(name):
    groups, logprobs_N = three_groups(), torch.tensor([-11.0, -12, -13, -14, -15], dtype=torch.float64)
    cards = [each.card() for each in groups]

    def losses(some, part_N):
        built = build_group_tensors(some, part_N, complements_N=part_N / 2, reward=RewardSource("help"), batch=cards)
        return METHODS[name].loss(built, CONFIGS[name]).loss_G

    together = losses(groups, logprobs_N)
    for index, part_N in enumerate(logprobs_N.split([len(each.responses) for each in groups])):
        assert_same(losses([groups[index]], part_N), together[index : index + 1])


@pytest.mark.parametrize(
    ("given", "kept"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_log_probs_are_never_kept_below_float32(given, kept):
    built = build_group_tensors([group(response(Role.NEGATIVE, harm=1.0))], torch.zeros(1, dtype=given))
    for each in fields(built):
        if each.name.endswith("logprobs_GR"):
            assert getattr(built, each.name).dtype == kept
    assert built.reward_GR.dtype == kept


def test_a_missing_reference_is_a_typed_error_that_names_the_response():
    broken = group(response(Role.NEGATIVE), replace(response(Role.SAMPLE), ref_logprobs={"rpos": -1.0}), order_id=7)
    with pytest.raises(MissingReferenceError, match=r"order 7, prompt 47, response 1 \(sample\): .* rneg .*'rpos'"):
        build_group_tensors([broken], torch.zeros(2))
    assert issubclass(MissingReferenceError, NegalignError)
    assert issubclass(MissingReferenceError, LookupError)


def test_without_references_a_missing_one_is_zero():
    built = build_group_tensors([group(response(Role.POSITIVE, refs=None))], torch.tensor([-3.0]), references=False)
    assert built.rpos_logprobs_GR.tolist() == [[0]]
    assert built.rneg_logprobs_GR.tolist() == [[0]]


def test_a_wrong_number_of_log_probs_is_our_own_mistake():
    with pytest.raises(AssertionError, match=r"4.* log-probs for 5 responses"):
        build_group_tensors(three_groups(), torch.zeros(4))

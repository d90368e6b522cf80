"""What a run says of each behaviour: margins by hand, added up over micro-batches and ranks without a collective."""

import math
from collections import defaultdict
from dataclasses import replace

import pytest
import torch

from negalign_ray.loops.behaviours import by_behaviour, figures
from negalign_ray.loops.merge import merge_ranks
from negalign_ray.loops.roles import StepReport
from negalign_ray.methods import Needs
from negalign_ray.records import Group, Polarity, Prompt
from tests.loops.test_training import ListSource, TablePolicy, make_group, make_loop
from tests.methods.cases import negative, positive, sample, tensors

D2O = Needs(negatives=True, samples="required", references=True)
DPO = Needs(negatives=True, positives=True, references=True)
NEAT = Needs(samples="required", reward=True, candidates=True)
SPIN = Needs(positives=True, samples="required", references=True)


def measured(needs: Needs, *rows) -> dict[str, float]:
    values = {name: values_G.item() for name, values_G in figures(tensors([list(rows)]), needs).items()}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def test_margin_and_accuracy_of_a_pairwise_method():
    found = measured(DPO, positive(-1.0, ref=-3.0), positive(-5.0, ref=-5.0), negative(-9.0, ref=-6.0), sample(-1.0))
    # log-ratios +2 and 0 against -3; the sample is reported, but is no side of the margin
    assert found["positive_nats"] == pytest.approx(1.0)
    assert found["negative_nats"] == pytest.approx(-3.0)
    assert found["sample_nats"] == pytest.approx(-1.0)
    assert found["margin_nats"] == pytest.approx(4.0)
    assert found["accuracy_frac"] == 1.0


def test_d2o_sets_its_own_samples_against_the_negatives():
    found = measured(D2O, negative(-2.0), sample(1.0), sample(-3.0), positive(-7.0))
    assert found["margin_nats"] == pytest.approx(-1.0 - -2.0)
    assert found["accuracy_frac"] == 0.5, "+1 is above -2, -3 is not"


def test_neat_counts_what_it_asked_for_under_bad_instructions_as_bad():
    good, bad = sample(1.0, polarity=Polarity.POSITIVE), sample(-3.0, polarity=Polarity.NEGATIVE)
    found = measured(NEAT, good, bad, negative(-5.0))
    assert found["margin_nats"] == pytest.approx(1.0 - -4.0)
    assert found["accuracy_frac"] == 1.0
    assert measured(NEAT, good, bad)["margin_nats"] == pytest.approx(4.0), "no human answer is needed"


def test_self_play_sets_the_positives_against_its_own_samples():
    assert measured(SPIN, positive(3.0), sample(1.0), negative(-50.0))["margin_nats"] == pytest.approx(2.0)


def test_the_margin_per_token_divides_each_answer_by_its_own_length():
    found = measured(DPO, positive(6.0, length=3), negative(-4.0))
    assert found["margin_nats"] == pytest.approx(10.0)
    assert found["margin_per_token_nats"] == pytest.approx(6.0 / 3 + 4.0)


def test_a_group_without_one_of_the_sides_has_no_margin_and_untouched_pairs_are_not_yet_right():
    assert measured(DPO, negative(-4.0)) == {"negative_nats": -4.0}
    assert measured(DPO, positive(-1.0, ref=-1.0), negative(-2.0, ref=-2.0))["accuracy_frac"] == 0.0


def test_groups_are_added_up_by_behaviour_and_those_without_one_are_left_out():
    sums, counts = defaultdict(float), defaultdict(int)
    behaviours = ["rude", "careless", "rude", None]
    groups = [Group(i, Prompt(i, "q", (), (5,), (), name), ()) for i, name in enumerate(behaviours)]
    by_behaviour(sums, counts, groups, {"margin_nats": torch.tensor([1.0, 5.0, math.nan, 9.0])})
    by_behaviour(sums, counts, groups[:1], {"margin_nats": torch.tensor([2.0])})
    assert dict(sums) == {
        "behaviour/rude/num_groups": 3, "behaviour/rude/margin_nats": 3.0,
        "behaviour/careless/num_groups": 1, "behaviour/careless/margin_nats": 5.0,
    }  # fmt: skip
    assert dict(counts) == {"behaviour/rude/margin_nats": 2, "behaviour/careless/margin_nats": 1}


def trained(behaviours: list[str | None], *, world_size: int) -> list[StepReport]:
    """One step of D2O on groups of these behaviours, as every rank reports it."""
    groups = [with_behaviour(make_group(i, num_tokens=2 + i), name) for i, name in enumerate(behaviours)]
    sources = [ListSource(groups) for _ in range(world_size)]
    for rank, source in enumerate(sources):
        policy = TablePolicy()
        policy.table.data = torch.tensor([-4.0 - 0.5, -3.0 + 0.5])  # as after an update: log-ratios -1.5 and +0.5
        loop = make_loop(policy, source, rank=rank, world_size=world_size, micro_batch_tokens=8)
        loop.run()
    return [source.reports[0] for source in sources]


def with_behaviour(group: Group, name: str | None) -> Group:
    return replace(group, prompt=replace(group.prompt, behaviour=name))


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_the_row_of_a_step_does_not_depend_on_the_number_of_ranks(world_size):
    row = merge_ranks(trained(["rude", "rude", "careless", None], world_size=world_size))
    of = {key: value for key, value in row.items() if key.startswith("behaviour/")}
    assert {key.split("/")[1] for key in of} == {"rude", "careless"}
    assert (of["behaviour/rude/num_groups"], of["behaviour/careless/num_groups"]) == (2, 1)
    for name in ("rude", "careless"):
        assert of[f"behaviour/{name}/negative_nats"] == pytest.approx(-1.5)
        assert of[f"behaviour/{name}/sample_nats"] == pytest.approx(0.5)
        assert of[f"behaviour/{name}/margin_nats"] == pytest.approx(2.0)
        assert of[f"behaviour/{name}/accuracy_frac"] == 1.0
    # per token: the sample has 2 tokens, the negative of group i has 2 + i
    assert of["behaviour/rude/margin_per_token_nats"] == pytest.approx(0.25 + (1.5 / 2 + 1.5 / 3) / 2)
    assert of["behaviour/careless/margin_per_token_nats"] == pytest.approx(0.25 + 1.5 / 4)
    assert "behaviour/rude/positive_nats" not in of


def test_the_weight_change_of_the_ranks_adds_up_in_squares():
    reports = [StepReport(0, rank, {"learner/weight_change_norm": part}, {}) for rank, part in enumerate((9.0, 16.0))]
    assert merge_ranks(reports) == {"learner/weight_change_norm": 5.0}


def test_the_loop_reports_the_weight_change_that_it_is_given():
    source = ListSource([make_group(0)])
    replace(make_loop(TablePolicy(), source), weight_change_sq=lambda: 6.25).run()
    assert source.reports[0].sums["learner/weight_change_norm"] == 6.25

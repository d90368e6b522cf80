"""One rank's loop on tiny backbones: it learns, it is shard-proof by construction, and folding changes no reward."""

import pytest
import torch

from negalign_ray.errors import NonFiniteError
from negalign_ray.loops.reward_training import RewardLoop, batches, deal, lr_factor, pack
from negalign_ray.records import Prompt, Response, Role
from negalign_ray.rewards.comparisons import Unit, make_unit, merge_units
from negalign_ray.rewards.linear import auroc
from negalign_ray.rewards.reward_network import RewardNetwork, load_backbone, make_encoder
from negalign_ray.settings.reward import RewardTrainingConfig
from tests.rewards.backbones import KIND, RUDE, make_bert


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return make_bert(tmp_path_factory.mktemp("bert"))


def units(config, *, start=0, num=40) -> list[Unit]:
    made = []
    for number in range(start, start + num):
        answers = (
            Response(Role.NEGATIVE, (), f"{RUDE[number % 4]} {number}"),
            Response(Role.POSITIVE, (), f"{KIND[(number + 1) % 4]} {number}"),
        )
        text = f"question {number}"
        prompt = Prompt(number, text, (("user", text),), (), answers)
        parts = [
            make_unit(prompt, head=column, objective=head.objective, direction=head.direction)
            for column, head in enumerate(config.heads)
        ]
        made.append(merge_units(parts))
    return made


def configure(*, frozen=False, heads=({},), **learners) -> RewardTrainingConfig:
    defaults = {"epochs": 4, "prompts_per_step": 8, "lr": 1e-3, "head_lr": 1e-2}
    return RewardTrainingConfig.model_validate(
        {"model": {"frozen": frozen}, "heads": list(heads), "learners": defaults | learners}
    )


def make_loop(folder, config, **more) -> tuple[RewardLoop, RewardNetwork]:
    backbone = load_backbone(folder)
    encoder = make_encoder(folder, backbone.config, text_input="prompt_response", max_tokens=96)
    network = RewardNetwork(backbone, num_heads=len(config.heads), pooling="last" if encoder.is_causal else "mean")
    return RewardLoop(network, encoder, config, **more), network


def score(loop, some):
    """(rewards of bad answers, of good answers), [prompts, heads] each."""
    rewards = loop.rewards([row for unit in some for row in unit.rows])
    return rewards[0::2], rewards[1::2]


@pytest.mark.parametrize("backbone", ["encoder", "causal"])
@pytest.mark.parametrize("frozen", [False, True])
def test_it_learns_to_tell_rude_from_kind_answers_to_new_prompts(bert, toy_model, backbone, frozen):
    config = configure(frozen=frozen, epochs=20 if frozen else 4)
    rows = []
    loop, _ = make_loop(bert if backbone == "encoder" else toy_model, config, report=rows.append)
    loop.run(units(config))
    bad, good = score(loop, units(config, start=100, num=20))
    assert auroc(torch.cat([bad, good]).flatten().numpy(), [True] * 20 + [False] * 20) > 0.9
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[0] == pytest.approx(0.6931, abs=1e-4), "all rewards are 0 before the first step"
    assert losses[-1] < 0.5
    assert len(losses) == config.num_epochs * 5


def test_two_heads_of_opposite_direction_share_the_backbone(bert):
    heads = ({"name": "harm"}, {"name": "help", "direction": "help", "objective": "pairwise"})
    config = configure(heads=heads, epochs=8)
    loop, _ = make_loop(bert, config)
    training = units(config)
    loop.run(training)
    bad, good = score(loop, units(config, start=100, num=20))
    assert (bad[:, 0] > good[:, 0]).float().mean() > 0.9
    assert (good[:, 1] > bad[:, 1]).float().mean() > 0.9
    bad, good = score(loop, training)
    assert (bad[:, 1].mean() + good[:, 1].mean()).item() == pytest.approx(0, abs=1e-3), "zero lies midway"


def test_micro_batches_change_nothing(bert):
    results = []
    for tokens in (60, 100_000):
        config = configure(epochs=1, micro_batch_tokens=tokens)
        loop, _ = make_loop(bert, config)
        loop.run(units(config))
        results.append(torch.cat(score(loop, units(config))).flatten().tolist())
    assert results[0] == pytest.approx(results[1], abs=1e-3)


def test_standardised_features_of_a_frozen_backbone_are_folded_into_the_heads(bert):
    """After training, heads on plain features give what heads on standardised ones gave: loss and rewards agree."""
    config = configure(frozen=True, epochs=10, lr=1.0)
    rows = []
    loop, network = make_loop(bert, config, report=rows.append)
    before = {name: values.clone() for name, values in network.backbone.state_dict().items()}
    training = units(config, num=8)  # one batch: the last reported loss is that before the last step
    loop.run(training)
    for name, values in network.backbone.state_dict().items():
        assert torch.equal(values, before[name]), "frozen"
    bad, good = score(loop, training)
    loss = torch.nn.functional.softplus(torch.cat([-bad, good])).mean().item()
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] - 0.05 < loss < losses[-1]


def test_a_loss_that_is_not_finite_ends_the_training(bert):
    config = configure()
    loop, network = make_loop(bert, config)
    with torch.no_grad():
        network.heads.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"reward_learner\[0\].*at step 1; lower learners.lr"):
        loop.run(units(config))


def test_every_unit_comes_once_an_epoch_in_an_order_that_the_seed_decides():
    some = [Unit(((f"p{number}", "a"),), ()) for number in range(7)]
    epochs = list(batches(some, size=3, epochs=2, seed=1))
    assert [len(batch) for batch in epochs] == [3, 3, 1, 3, 3, 1]
    first, second = epochs[:3], epochs[3:]
    assert sorted(unit.rows for batch in first for unit in batch) == [unit.rows for unit in some]
    assert first != second
    assert list(batches(some, size=3, epochs=2, seed=1)) == epochs
    shares = [deal(some, rank=rank, world_size=3) for rank in range(3)]
    assert sorted(unit.rows for share in shares for unit in share) == [unit.rows for unit in some]


def test_micro_batches_hold_whole_units_within_the_token_budget():
    three = Unit((("p", "a"),) * 3, ())
    one = Unit((("p", "a"),), ())
    assert pack([three, one, one], [[5, 4, 5], [5], [9]], max_tokens=20) == [[0, 1], [2]]
    assert pack([three], [[100, 1, 1]], max_tokens=20) == [[0]], "a unit is never divided"
    assert pack([], [], max_tokens=20) == []


def test_the_learning_rate_rises_and_falls_in_straight_lines():
    rates = [lr_factor(step, num_steps=10, warmup_frac=0.2) for step in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])

"""One iteration of the guide, driven by a hand-made one: what is fitted, what is measured, what is said about it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch

from negalign_ray.config import LATENT_DISTANCE, GuideConfig
from negalign_ray.errors import NonFiniteError
from negalign_ray.evaluation.training_notes import control_warning
from negalign_ray.loops.fitting import (
    add_distances,
    as_pair,
    distance_figures,
    fit,
    fit_and_measure,
    learner_config,
    split_by_prompt,
)
from negalign_ray.records import Group, Prompt, Response, Role

CONFIG = GuideConfig(steps=3, groups_per_step=2, heldout_frac=0.25)


def make_group(order_id: int, *, prompt_id: int | None = None, own: tuple[int, ...] = (3, 4)) -> Group:
    """The human answer is the token 0; the own answer is `own`; the human negative is not for the guide."""
    prompt_id = order_id if prompt_id is None else prompt_id
    negative = Response(Role.NEGATIVE, (9,), "no")
    positive = Response(Role.POSITIVE, (0,), "yes")
    sample = Response(Role.SAMPLE, own, "own", weight_version=0, rewards={"harm": 0.5})
    prompt = Prompt(prompt_id, "p", (("user", "p"),), (5, prompt_id), (negative, positive))
    return Group(order_id, prompt, (negative, positive, sample))


@dataclass(frozen=True)
class Stats:
    grad_norm: float = 1.0
    lr: float = 0.1


@dataclass
class FakeGuide:
    """phi = (first token, number of tokens - 1); the log-prob of every answer is one number that training raises."""

    gain: float = 0.5
    value: torch.Tensor = field(default_factory=lambda: torch.tensor(-4.0, requires_grad=True))
    read: list[tuple[int, ...]] = field(default_factory=list)  # order ids of every call of `logprobs`
    encoded: int = 0
    num_heldout: int = 0

    def logprobs(self, groups: Sequence[Group]) -> torch.Tensor:
        self.read.append(tuple(group.order_id for group in groups))
        assert all(r.role is not Role.NEGATIVE for group in groups for r in group.responses)
        return self.value.expand(sum(len(group.responses) for group in groups))

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        loss.backward()

    def step(self) -> Stats:
        with torch.no_grad():
            self.value -= 0.5 * self.value.grad
        self.value.grad = None
        return Stats()

    def gather_weights(self):
        return []

    def latents(self, groups: Sequence[Group]) -> list[torch.Tensor]:
        self.encoded += sum(len(group.responses) for group in groups)
        return [
            torch.tensor([[float(r.token_ids[0]), len(r.token_ids) - 1.0] for r in group.responses]) for group in groups
        ]

    def nll_per_token(self, groups: Sequence[Group], *, control: bool) -> float:
        self.num_heldout = len(groups)
        return 2.0 + (self.gain if control else 0.0)


def distance(group: Group) -> float:
    return group.samples[0].rewards[LATENT_DISTANCE]


def test_the_distance_is_euclidean_and_stands_beside_the_scores_of_the_heads():
    (group,) = add_distances(FakeGuide(), [make_group(0, own=(3, 4, 4, 4, 4))])  # (3, 4) from (0, 0)
    assert group.samples[0].rewards == {"harm": 0.5, LATENT_DISTANCE: 5.0}
    assert [LATENT_DISTANCE in r.rewards for r in group.responses] == [False, False, True]


def test_l2_an_own_answer_that_equals_the_human_one_has_distance_zero():
    (group,) = add_distances(FakeGuide(), [make_group(0, own=(0,))])
    assert distance(group) == 0.0


def test_every_answer_is_encoded_once_per_prompt_and_human_negatives_never():
    guide = FakeGuide()
    groups = [make_group(0), make_group(1, prompt_id=0), make_group(2, own=(8,))]
    assert [distance(group) for group in add_distances(guide, groups)] == pytest.approx([10**0.5, 10**0.5, 8])
    assert guide.encoded == 2 + 2  # y and y' of prompt 0 (twice the same), y and y' of prompt 2


def test_with_several_human_answers_it_is_the_mean_distance_to_them():
    group = make_group(0, own=(3,))
    second = Response(Role.POSITIVE, (1,), "also")
    (group,) = add_distances(FakeGuide(), [Group(0, group.prompt, (*group.responses, second))])
    assert distance(group) == pytest.approx((3 + 2) / 2)


def test_prompts_not_groups_are_held_out():
    groups = [make_group(index, prompt_id=index // 2) for index in range(8)]
    fitted, heldout = split_by_prompt(groups, heldout_frac=0.25, seed=0)
    assert (len(fitted), len(heldout)) == (6, 2)
    assert not {g.prompt.prompt_id for g in fitted} & {g.prompt.prompt_id for g in heldout}
    assert split_by_prompt(groups, heldout_frac=0.25, seed=0) == (fitted, heldout)
    assert split_by_prompt(groups[:2], heldout_frac=0.25, seed=0) == (groups[:2], []), "one prompt cannot be split"


def test_the_fit_makes_seeded_passes_over_its_pairs_and_lowers_the_loss():
    groups = [make_group(index) for index in range(4)]
    runs = []
    for _ in range(2):
        guide = FakeGuide()
        losses = fit(guide, list(map(as_pair, groups)), config=CONFIG, seed=1)
        assert losses == sorted(losses, reverse=True)
        assert losses[0] == 8.0, "4 nats for y and 4 for y'"
        runs.append(guide.read)
    assert runs[0] == runs[1]
    assert sorted(order for batch in runs[0][:2] for order in batch) == [0, 1, 2, 3], "a pass holds every pair once"


def test_the_figures_tell_reconstruction_control_and_spread_and_pairs_held_out_get_distances_too():
    guide = FakeGuide()
    groups = [make_group(index, own=(1 + 2 * (index % 2),)) for index in range(8)]  # distances 1, 3, 1, 3, ...
    measured, figures = fit_and_measure(guide, groups, config=CONFIG, seed=0)
    assert guide.num_heldout == 2
    assert len([distance(group) for group in measured]) == 8
    assert figures == {
        "guide/fit_loss_nats": pytest.approx(2 * (4 - 2.0)),  # -4, then up by 0.5 * 2 after each step
        "guide/pairs": 8.0,
        "guide/distance": 2.0,
        "guide/distance_spread": 0.5,
        "guide/nll_nats": 2.0,
        "guide/control_nll_nats": 2.5,
        "guide/gain_nats": 0.5,
    }
    assert control_warning(figures) is None


def test_a_guide_that_does_not_beat_the_control_is_named_with_what_to_do():
    _, figures = fit_and_measure(FakeGuide(gain=-0.1), [make_group(i) for i in range(4)], config=CONFIG, seed=0)
    warning = control_warning(figures)
    assert "zero-vector control" in warning
    assert "guide/nll_nats=2.000, guide/control_nll_nats=1.900" in warning
    assert "raise guide.steps" in warning


def test_one_prompt_alone_leaves_no_control_and_that_is_said():
    measured, figures = fit_and_measure(FakeGuide(), [make_group(0)], config=CONFIG, seed=0)
    assert distance(measured[0]) > 0
    assert "guide/gain_nats" not in figures
    assert "no held-out pairs" in control_warning(figures)


def test_no_distance_at_all_gives_no_figures_and_equal_ones_no_spread():
    assert distance_figures([]) == {}
    assert distance_figures(add_distances(FakeGuide(), [make_group(0, own=(0,))]))["guide/distance_spread"] == 0.0


def test_a_fit_that_diverges_is_a_typed_failure():
    guide = FakeGuide(value=torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(NonFiniteError):
        fit(guide, [as_pair(make_group(0))], config=CONFIG, seed=0)


def test_the_section_is_told_to_the_training_loop_in_its_own_words():
    learners = learner_config(GuideConfig(steps=7, lr=0.5, groups_per_step=3, micro_batch_tokens=11))
    assert (learners.steps, learners.lr, learners.groups_per_step, learners.micro_batch_tokens) == (7, 0.5, 3, 11)
    assert learners.mismatch_every == 0, "no sampler runs the guide"

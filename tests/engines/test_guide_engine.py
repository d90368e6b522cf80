"""The guide learns: its vectors beat the zero-vector control on answers it never saw, and tell answers apart."""

import random
from statistics import mean

import pytest
import torch

from negalign_ray.config import LATENT_DISTANCE, GuideConfig
from negalign_ray.engines.guide_engine import GuideEngine
from negalign_ray.loops.fitting import fit_and_measure, learner_config
from negalign_ray.models.guide import make_guide
from negalign_ray.records import Group, Prompt, Response, Role

CONFIG = GuideConfig(
    width=32, heads=2, layers=1, latent_size=8, steps=120, groups_per_step=8, lr=5e-3, heldout_frac=0.25
)
KINDS = [range(40, 45), range(100, 105), range(180, 185)]  # three manners of speaking: disjoint sets of words


def answer(rng: random.Random, kind: int) -> tuple[int, ...]:
    return tuple(rng.choice(KINDS[kind]) for _ in range(8))


def make_groups(num: int = 40) -> list[Group]:
    """The prompt tells nothing of the manner; the own answer has the human's manner in every second group."""
    rng = random.Random(0)
    groups = []
    for index in range(num):
        kind = rng.randrange(3)
        positive = Response(Role.POSITIVE, answer(rng, kind), "")
        own = Response(Role.SAMPLE, answer(rng, kind if index % 2 else (kind + 1) % 3), "")
        prompt = Prompt(index, "", (), (1, rng.randrange(250, 300)), (positive,))
        groups.append(Group(index, prompt, (positive, own)))
    return groups


def make_engine(toy_model, config: GuideConfig = CONFIG) -> GuideEngine:
    model = make_guide(config, model_path=toy_model, seed=0)
    return GuideEngine(model, config=learner_config(config), zero_frac=config.zero_frac, seed=0)


@pytest.fixture(scope="module")
def fitted(toy_model):
    engine = make_engine(toy_model)
    return engine, *fit_and_measure(engine, make_groups(), config=CONFIG, seed=0)


def test_the_vector_beats_the_vector_of_zeros_on_pairs_that_were_held_out(fitted):
    _, _, figures = fitted
    assert figures["guide/gain_nats"] > 0.15, "the manner alone is worth ln 3 / 8 = 0.14: one token gives it away"
    assert figures["guide/control_nll_nats"] < 3.5, (
        "the control was fitted too: ln 15 = 2.7 at best, ln 304 = 5.7 before"
    )


def test_answers_in_another_manner_are_farther_than_answers_in_the_same(fitted):
    _, measured, _ = fitted
    distances = [group.samples[0].rewards[LATENT_DISTANCE] for group in measured]
    assert mean(distances[0::2]) > 1.5 * mean(distances[1::2])


def test_l3_no_gradient_of_the_guide_is_left_and_no_policy_could_reach_it(fitted):
    engine, measured, _ = fitted
    assert all(isinstance(r.rewards[LATENT_DISTANCE], float) for group in measured for r in group.samples)
    assert all(parameter.grad is None for parameter in engine._model.parameters())


def test_the_same_seed_and_pairs_give_the_same_distances_so_a_replaced_guide_measures_the_same(toy_model):
    config = CONFIG.model_copy(update={"steps": 5})
    runs = [fit_and_measure(make_engine(toy_model, config), make_groups(12), config=config, seed=0) for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("micro_batch_tokens", [1, 40])
def test_micro_batches_do_not_change_what_is_measured(fitted, toy_model, micro_batch_tokens):
    engine, measured, _ = fitted
    whole = [engine.latents(measured), engine.nll_per_token(measured, control=False)]
    other = make_engine(toy_model, CONFIG.model_copy(update={"micro_batch_tokens": micro_batch_tokens}))
    other._model.load_state_dict(engine._model.state_dict())
    torch.testing.assert_close(torch.cat(other.latents(measured)), torch.cat(whole[0]), rtol=1e-4, atol=1e-5)
    assert other.nll_per_token(measured, control=False) == pytest.approx(whole[1], rel=1e-5)


def test_a_share_of_the_answers_is_fitted_with_zeros(toy_model):
    groups = make_groups(4)
    never, always = (make_engine(toy_model, CONFIG.model_copy(update={"zero_frac": frac})) for frac in (0.0, 1.0))
    num_tokens = sum(len(r.token_ids) for group in groups for r in group.responses)
    for engine, control in ((never, False), (always, True)):
        total = -engine.logprobs(groups).sum().item() / num_tokens
        assert total == pytest.approx(engine.nll_per_token(groups, control=control), rel=1e-5)
    assert never.logprobs([]).shape == (0,)

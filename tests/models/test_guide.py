"""The guide model: what its vectors do, what is frozen, and that padding and batches do not matter."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from negalign_ray.config import GuideConfig
from negalign_ray.errors import DataError
from negalign_ray.models.guide import GuideRows, make_guide, read_embedding
from negalign_ray.records import Group, Prompt, Response, Role

CONFIG = GuideConfig(width=32, heads=2, layers=1, latent_size=8)


def make_group(prompt: tuple[int, ...], *answers: tuple[int, ...]) -> Group:
    responses = tuple(Response(Role.SAMPLE, answer, "") for answer in answers)
    return Group(0, Prompt(0, "", (), prompt, ()), responses)


GROUPS = [make_group((1, 40, 41), (50, 51, 2), (60,)), make_group((1, 7), (90, 91, 92, 93, 94, 2))]


@pytest.fixture(scope="module")
def guide(toy_model):
    return make_guide(CONFIG, model_path=toy_model, seed=0)


def test_rows_hold_prompt_and_answer_and_know_which_tokens_are_the_answer():
    rows = GuideRows.of([make_group((5, 6), (7,), (8, 9))])
    assert rows.ids_BT.tolist() == [[5, 6, 7, 0], [5, 6, 8, 9]]
    assert rows.is_answer_BT.tolist() == [[False, False, True, False], [False, False, True, True]]
    with pytest.raises(DataError, match="no tokens"):
        GuideRows.of([make_group((), (7,))])


@torch.no_grad()
def test_the_decoder_prices_every_answer_token_with_a_softmax_over_the_vocabulary(guide):
    rows = GuideRows.of(GROUPS)
    vector_BZ = guide.encode(rows)
    states_BTD = guide.decoder(rows.ids_BT, shift_BD=guide.from_latent(vector_BZ))
    logprobs_BTV = (guide.write_out(states_BTD) @ guide.head_VH.t()).log_softmax(-1)
    expected = [
        sum(logprobs_BTV[row, t - 1, rows.ids_BT[row, t]] for t in torch.where(rows.is_answer_BT[row])[0])
        for row in range(3)
    ]
    assert guide.decode(rows, vector_BZ).tolist() == pytest.approx([value.item() for value in expected], rel=1e-5)


@torch.no_grad()
def test_neither_padding_nor_batch_mates_change_vectors_or_log_probs(guide):
    together = GuideRows.of(GROUPS)
    alone = GuideRows.of(GROUPS[:1])
    torch.testing.assert_close(guide.encode(together)[:2], guide.encode(alone), rtol=1e-5, atol=1e-6)
    zeros = torch.zeros(3, 8)
    torch.testing.assert_close(guide.decode(together, zeros)[:2], guide.decode(alone, zeros[:2]), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_vector_of_zeros_is_a_decoder_without_a_guide(guide):
    rows = GuideRows.of(GROUPS)
    assert torch.equal(guide.decoder(rows.ids_BT, shift_BD=guide.from_latent(torch.zeros(3, 8))),
                       guide.decoder(rows.ids_BT))  # fmt: skip
    assert not torch.equal(guide.decode(rows, guide.encode(rows)), guide.decode(rows, torch.zeros(3, 8)))


@torch.no_grad()
def test_l2_the_distance_is_zero_for_equal_answers_symmetric_and_not_negative(guide):
    first_Z, second_Z, third_Z = guide.encode(GuideRows.of([make_group((1, 40), (50, 51), (50, 51), (60, 61))]))
    assert (first_Z - second_Z).norm() == 0
    assert (first_Z - third_Z).norm() == (third_Z - first_Z).norm() > 0


def test_the_policys_embeddings_are_read_and_frozen_and_everything_else_learns(guide, toy_model):
    table_VH = load_file(toy_model / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(read_embedding(toy_model), table_VH)
    assert guide.head_VH.square().mean().item() == pytest.approx(1.0, rel=1e-5), "whatever scale the policy's have"
    rows = GuideRows.of(GROUPS)
    guide.decode(rows, guide.encode(rows)).sum().backward()
    learning = {name for name, parameter in guide.named_parameters() if parameter.grad is not None}
    frozen = {name for name, parameter in guide.named_parameters() if not parameter.requires_grad}
    guide.zero_grad()
    assert learning | frozen == {name for name, _ in guide.named_parameters()}
    assert {name.split(".", 1)[1] for name in frozen} == {"embedding.weight", "trunk.embed_tokens.weight"}


def test_the_same_seed_gives_the_same_guide_and_leaves_the_callers_draws_alone(toy_model):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = (make_guide(CONFIG, model_path=toy_model, seed=seed) for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    assert torch.equal(first.to_latent.weight, second.to_latent.weight)
    assert not torch.equal(first.to_latent.weight, other.to_latent.weight)


@torch.no_grad()
def test_with_a_backbone_the_decoder_starts_as_that_model(toy_model):
    guide = make_guide(GuideConfig(backbone=str(toy_model), latent_size=8), model_path=toy_model, seed=0)
    rows = GuideRows.of(GROUPS[1:])
    model = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32).eval()
    logprobs_TV = model(rows.ids_BT).logits[0].log_softmax(-1)
    expected = sum(logprobs_TV[t - 1, rows.ids_BT[0, t]].item() for t in range(2, 8))
    assert guide.decode(rows, torch.zeros(1, 8)).item() == pytest.approx(expected, abs=1e-3)
    assert guide.encode(rows).shape == (1, 8)
    encoder, decoder = (
        {id(parameter) for parameter in half.trunk.parameters() if parameter.requires_grad}
        for half in (guide.encoder, guide.decoder)
    )
    assert encoder
    assert not encoder & decoder, "two copies: what one learns is not in the other"

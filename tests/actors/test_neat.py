"""NEAT on the real stack: own answers under good and bad instructions, candidate lists that live over the rounds."""

import asyncio
import gc
import math

import pytest
import ray
from typer.testing import CliRunner

from negalign_ray.actors.dry_run import batch_lines
from negalign_ray.actors.fleet import RayFleet
from negalign_ray.actors.plan import make_plan
from negalign_ray.cli import app
from negalign_ray.loops.candidates import CandidateLists
from negalign_ray.loops.orders import OrderFactory
from negalign_ray.settings import load_config
from tests.actors.conftest import TOY, read_rows

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ray_cluster")]
FOUR_PROMPTS = ("data.limit=5", "learners.groups_per_step=4", "sampling.num_samples=4", "method.max_candidates=6")


@pytest.fixture
def overrides(toy_model, tmp_path):
    return [*TOY, f"model.path={toy_model}", f"run.dir={tmp_path}", *FOUR_PROMPTS]


def test_the_preset_trains_on_good_and_bad_answers_of_this_round_and_of_the_one_before(overrides, tmp_path):
    settings = [part for setting in overrides for part in ("--set", setting)]
    result = CliRunner().invoke(app, ["train", "--preset", "neat", *settings])
    assert result.exit_code == 0, result.output
    run_dir = tmp_path / "neat"
    rows = read_rows(run_dir / "metrics.jsonl")
    assert len(rows) == 3
    assert all(math.isfinite(row["learner/loss"]) and row["learner/grad_norm"] > 0 for row in rows)
    for key in ("learner/rank_nats", "learner/best_token_nll_nats", "learner/active_negative_pairs_frac"):
        assert all(row[key] is not None for row in rows), key
    assert all(0 <= row["scorer/toxicity_sample_negative"] <= 1 for row in rows)
    assert {row["sampler/staleness_steps"] for row in rows} == {0.0}, "carried answers are old on purpose"

    rounds = {}
    for group in read_rows(run_dir / "samples" / "rank-0.jsonl"):
        assert {response["role"] for response in group["responses"]} >= {"negative", "sample"}
        samples = [response for response in group["responses"] if response["role"] == "sample"]
        assert [sample["polarity"] for sample in samples[:4]] == ["positive", "negative"] * 2
        assert all("toxicity" in response["rewards"] for response in group["responses"])
        rounds.setdefault(group["prompt_id"], []).append(samples)
    assert len(rounds) == 4
    for first, second, third in rounds.values():
        assert [sample["carried"] for sample in first] == [False] * 4
        for before, now in ((first, second), (second, third)):
            assert [sample["carried"] for sample in now] == [False] * 4 + [True] * 2
            told = ("text", "polarity", "instruction", "weight_version", "rewards", "num_tokens")
            assert [[c[key] for key in told] for c in now[4:]] == [[s[key] for key in told] for s in before[:2]]


def test_earlier_groups_stay_readable_until_they_are_replaced_and_are_freed_then(overrides):
    plan = make_plan(load_config(preset="neat", overrides=overrides))
    assert "the newest 6 own answers of a prompt" in batch_lines(plan)[-1]
    chat = plan.chat()
    factory = OrderFactory(
        plan.data.train,
        instructions=plan.instructions,
        num_samples=plan.num_samples,
        seed=0,
        context_ids=lambda prompt, text: chat.prompt_ids(prompt.messages, text),
    )
    lists, fleet = CandidateLists(max_lists=3), RayFleet(plan)  # one list less than there are prompts
    made: set[str] = set()

    async def one_round() -> list[int]:
        orders = [lists.attach_to(factory.next_order()) for _ in range(4)]
        sampled = (await fleet.sample(0, orders)).handles
        handles = (await fleet.score(sampled)).handles
        made.update(handle.ref.hex() for handle in (*sampled, *handles))
        lists.remember((order.prompt.prompt_id, handle) for order, handle in zip(orders, handles, strict=True))
        return sorted(sum(card.carried for card in handle.card.responses) for handle in handles)

    def alive() -> set[str]:
        gc.collect()
        counts = ray._private.worker.global_worker.core_worker.get_all_reference_counts()
        return made & {key.decode() for key in counts}

    try:
        fleet.reserve()
        fleet.wait_until_ready()
        carried = [asyncio.run(one_round()) for _ in range(4)]
        held = alive()
    finally:
        fleet.kill()
    assert carried == [[0, 0, 0, 0]] + [[0, 2, 2, 2]] * 3
    assert (len(made), len(held)) == (4 * 4 * 2, 3), "16 groups, sampled and scored; three of them are lists"

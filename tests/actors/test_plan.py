"""What is decided and refused before Ray starts."""

import shutil

import pytest
from rich.console import Console

from negalign_ray.actors.cluster import placements
from negalign_ray.actors.dry_run import BYTES, PROCESS_BYTES, ModelSize, batch_lines, learner_bytes
from negalign_ray.actors.plan import make_plan
from negalign_ray.actors.run import dry_run
from negalign_ray.config import LearnersConfig
from negalign_ray.errors import ConfigError, DataError, ModelError

BILLION = ModelSize(num_params=10**9, vocab_size=1000)
LOGITS_FP32 = 1024 * 1000 * (BYTES["float32"] + 4)


@pytest.mark.parametrize(
    ("stage", "ranks", "expected_bytes_per_param"),
    [(0, 4, 16), (1, 4, 4 + 4 + 8 / 4), (2, 4, 4 + 4 / 4 + 8 / 4), (3, 4, 16 / 4), (3, 1, 16)],
)
def test_learner_memory_follows_the_zero_stages(stage, ranks, expected_bytes_per_param):
    config = LearnersConfig(num=ranks, zero_stage=stage)
    needed = learner_bytes(BILLION, config, "float32")
    assert needed == pytest.approx(expected_bytes_per_param * 1e9 + LOGITS_FP32 + PROCESS_BYTES)


def test_the_dry_run_shows_every_role_and_the_batch_arithmetic(toy_config):
    config = toy_config("learners.num=2", "samplers.num=3")
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(dry_run(config))
    shown = console.export_text()
    for role in ("sampler", "learner", "scorer", "reference"):
        assert role in shown
    assert "4 prompts a step over 2 rank(s) = about 2 each" in shown
    assert "strictly on-policy" in shown


def test_the_schedule_is_told_in_words(toy_config):
    plan = make_plan(toy_config("sampling.staleness=2", "sampling.online_from_step=5", "sampling.buffer_groups=8"))
    assert "initial model before step 5, then at most 2 step(s) old" in "\n".join(batch_lines(plan))


def test_methods_without_samples_or_references_start_neither(toy_config, tmp_path):
    rows = "".join(f'{{"prompt": "q{i}", "chosen": "yes {i}", "rejected": "no {i}"}}\n' for i in range(20))
    (tmp_path / "pairs.jsonl").write_text(rows)
    plan = make_plan(toy_config('method={"name": "sft"}', f"data.path={tmp_path / 'pairs.jsonl'}", "data.limit=null"))
    assert plan.num_samples == 0
    assert [place.role for place in placements(plan)] == ["sampler", "learner", "scorer"]


def test_two_reference_models_get_a_pool_each(toy_config, toy_model, tmp_path):
    other = shutil.copytree(toy_model, tmp_path / "other")
    plan = make_plan(toy_config(f"references.rneg={other}"))
    assert list(plan.reference_pools) == [("rpos",), ("rneg",)]


def test_dpo_on_negatives_only_is_refused_before_anything_starts(toy_config):
    with pytest.raises(DataError, match="positive answer"):
        make_plan(toy_config('method={"name": "dpo"}'))


def test_a_missing_model_is_refused_with_what_to_do(toy_config):
    with pytest.raises(ModelError, match="no-such-model"):
        make_plan(toy_config("model.path=/tmp/no-such-model"))


def test_a_reward_head_that_cannot_be_loaded_is_refused(toy_config):
    head = '[{"name": "mine", "kind": "python", "target": "no_such_module:score"}]'
    with pytest.raises(ConfigError, match="no_such_module"):
        make_plan(toy_config(f"scorers.heads={head}"))

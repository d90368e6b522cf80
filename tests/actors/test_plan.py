"""What is decided and refused before Ray starts."""

import json
import shutil

import pytest
from rich.console import Console

from negalign_ray.actors.cluster import placements
from negalign_ray.actors.dry_run import batch_lines
from negalign_ray.actors.memory import BYTES, PROCESS_BYTES, ModelSize, learner_memory, role_memory
from negalign_ray.actors.plan import make_plan
from negalign_ray.actors.run import dry_run
from negalign_ray.config import LearnersConfig
from negalign_ray.errors import ConfigError, DataError, ModelError
from negalign_ray.methods.groups import RewardSource

BILLION = ModelSize(num_params=10**9, vocab_size=1000)
LOGITS_FP32 = 1024 * 1000 * (BYTES["float32"] + 4)


@pytest.mark.parametrize(
    ("stage", "ranks", "expected_bytes_per_param"),
    [(0, 4, 16), (1, 4, 4 + 4 + 8 / 4), (2, 4, 4 + 4 / 4 + 8 / 4), (3, 4, 16 / 4), (3, 1, 16)],
)
def test_learner_memory_follows_the_zero_stages(stage, ranks, expected_bytes_per_param):
    config = LearnersConfig(num=ranks, zero_stage=stage)
    needed = learner_memory(BILLION, config, "float32").total
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


def test_prompts_that_the_method_cannot_use_are_counted_and_told(toy_config, tmp_path):
    rows = [{"prompt": f"q{i}", "response": f"a {i}", "label": "safe" if i % 2 else "unsafe"} for i in range(20)]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = (f"data.path={tmp_path / 'some.jsonl'}", "data.limit=null", "data.heldout_frac=0")
    lines = batch_lines(make_plan(toy_config(*paths)))
    assert lines[1] == (
        "left out: 10 more prompts lack a bad answer (column `rejected`, or `response` with `label: unsafe`) "
        "and are not trained on"
    )


def test_the_schedule_is_told_in_words(toy_config):
    plan = make_plan(toy_config("sampling.staleness=2", "sampling.online_from_step=5", "sampling.buffer_groups=8"))
    assert "initial model before step 5, then at most 2 step(s) old" in "\n".join(batch_lines(plan))


def test_methods_without_samples_or_references_start_neither(toy_config, tmp_path):
    rows = "".join(f'{{"prompt": "q{i}", "chosen": "yes {i}", "rejected": "no {i}"}}\n' for i in range(20))
    (tmp_path / "pairs.jsonl").write_text(rows)
    plan = make_plan(toy_config('method={"name": "sft"}', f"data.path={tmp_path / 'pairs.jsonl'}", "data.limit=null"))
    assert plan.num_samples == 0
    assert [place.role for place in placements(plan)] == ["sampler", "learner", "scorer"]


def test_a_method_that_ranks_can_do_without_samples_where_prompts_have_both_kinds_of_answers(toy_config, tmp_path):
    rows = "".join(f'{{"prompt": "q{i}", "chosen": "yes {i}", "rejected": "no {i}"}}\n' for i in range(20))
    (tmp_path / "pairs.jsonl").write_text(rows)
    ranked = ('method={"name": "clha", "reward_head": "toxicity"}', "data.limit=null")
    plan = make_plan(toy_config(*ranked, "sampling.num_samples=0", f"data.path={tmp_path / 'pairs.jsonl'}"))
    assert (plan.num_samples, plan.reference_pools, plan.reward.sign) == (0, {}, -1.0)
    assert make_plan(toy_config(*ranked)).num_samples == 3, "with own answers, bad answers are enough"
    with pytest.raises(
        DataError, match=r"prompts, 157 lack a good answer .*`chosen`.*sampling\.num_samples of 1 or more"
    ):
        make_plan(toy_config(*ranked, "sampling.num_samples=0"))


@pytest.mark.parametrize("method", ['{"name": "d2o"}', '{"name": "dpo", "winners": "samples"}'])
def test_no_samples_for_a_method_that_trains_on_them_is_refused(toy_config, method):
    with pytest.raises(ConfigError, match=r"sampling\.num_samples=0, but method\.name=d[2p]o trains on"):
        make_plan(toy_config(f"method={method}", "sampling.num_samples=0"))


def test_ld_align_starts_a_guide_reads_its_distances_and_tells_its_iterations(toy_config, tmp_path):
    rows = "".join(f'{{"prompt": "q{i}", "chosen": "yes {i}", "rejected": "no {i}"}}\n' for i in range(20))
    (tmp_path / "pairs.jsonl").write_text(rows)
    iterations = ("sampling.schedule=interval", "sampling.refresh_every=2", "sampling.buffer_groups=8")
    data = (f"data.path={tmp_path / 'pairs.jsonl'}", "data.limit=null", "references.follow=snapshot")
    plan = make_plan(toy_config('method={"name": "ld_align"}', *iterations, *data))
    assert [place.role for place in placements(plan)] == ["sampler", "learner", "scorer", "reference", "guide"]
    assert plan.reward == RewardSource("latent_distance")
    assert role_memory(plan)["guide"].total > PROCESS_BYTES
    assert "a new snapshot every 2 steps, which the references follow" in "\n".join(batch_lines(plan))

    constant = make_plan(toy_config('method={"name": "ld_align", "weight_mode": "constant"}', *iterations, *data))
    assert "guide" not in [place.role for place in placements(constant)]
    assert constant.reward is None


def test_ld_align_on_negatives_only_is_refused_with_the_column_that_would_provide_good_answers(toy_config):
    iterations = ("sampling.schedule=interval", "sampling.refresh_every=1")
    with pytest.raises(DataError, match=r"a good answer \(column `chosen`"):
        make_plan(toy_config('method={"name": "ld_align"}', *iterations))


def test_two_reference_models_get_a_pool_each(toy_config, toy_model, tmp_path):
    other = shutil.copytree(toy_model, tmp_path / "other")
    plan = make_plan(toy_config(f"references.rneg={other}"))
    assert list(plan.reference_pools) == [("rpos",), ("rneg",)]


def test_dpo_on_negatives_only_is_refused_before_anything_starts(toy_config):
    with pytest.raises(DataError, match=r"prompts, 157 lack a good answer \(column `chosen`, or `response`"):
        make_plan(toy_config('method={"name": "dpo"}'))


def test_broken_multiple_choice_rows_are_refused_before_anything_starts(toy_config, tmp_path):
    file = tmp_path / "choices.jsonl"
    file.write_text('{"question": "Predators eat", "choices": ["grass", "bunnies"], "answer": "C"}\n')
    with pytest.raises(DataError, match=r"evaluation\.choices_path.*\n *row 1: answer is neither"):
        make_plan(toy_config("evaluation.enabled=true", f"evaluation.choices_path={file}"))


ITERATIONS = ("sampling.schedule=interval", "sampling.refresh_every=1", "sampling.buffer_groups=8")


@pytest.mark.parametrize(("method", "more"), [("sft", ()), ("spin", ITERATIONS), ("ld_align", ITERATIONS)])
def test_methods_of_good_answers_train_and_are_evaluated_on_data_without_bad_ones(toy_config, tmp_path, method, more):
    rows = [{"prompt": f"q{number}", "response": f"yes {number}", "label": "safe"} for number in range(20)]
    (tmp_path / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = (f"data.path={tmp_path / 'good.jsonl'}", "data.limit=null", "evaluation.enabled=true")
    plan = make_plan(toy_config(f"method.name={method}", *data, *more))
    assert (len(plan.data.train), len(plan.probes.harmful_prompts), len(plan.probes.human_benign)) == (17, 3, 3)
    assert len(plan.probes.negatives) == 0


def test_an_evaluation_without_held_out_prompts_is_refused_before_anything_starts(toy_config):
    with pytest.raises(DataError, match=r"raise data\.heldout_frac.*evaluation\.enabled=false"):
        make_plan(toy_config("data.heldout_frac=0", "evaluation.enabled=true"))
    assert make_plan(toy_config("data.heldout_frac=0")).probes is None, "without an evaluation, it is a fair choice"


def test_benign_prompts_that_are_held_out_too_are_refused_before_anything_starts(toy_config, tmp_path):
    rows = [{"prompt": f"q{number}", "rejected": f"no {number}"} for number in range(20)]
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    benign = [{"prompt": row["prompt"], "response": "gladly"} for row in rows]
    (tmp_path / "benign.jsonl").write_text("".join(json.dumps(row) + "\n" for row in benign))
    paths = (f"data.path={tmp_path / 'bad.jsonl'}", f"data.benign_path={tmp_path / 'benign.jsonl'}", "data.limit=null")
    with pytest.raises(DataError, match=r"3 prompts stand in the held-out rows and in the benign rows"):
        make_plan(toy_config(*paths, "evaluation.enabled=true"))


def test_a_missing_model_is_refused_with_what_to_do(toy_config):
    with pytest.raises(ModelError, match="no-such-model"):
        make_plan(toy_config("model.path=/tmp/no-such-model"))


def test_a_reward_head_that_cannot_be_loaded_is_refused(toy_config):
    head = '[{"name": "mine", "kind": "python", "target": "no_such_module:score"}]'
    with pytest.raises(ConfigError, match="no_such_module"):
        make_plan(toy_config(f"scorers.heads={head}"))

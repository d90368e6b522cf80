"""Resume on the real stack: from any step, a run goes on as if it had never been interrupted, bit for bit."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from negalign_ray.actors.resume import find_checkpoint
from negalign_ray.actors.run import resume, train
from negalign_ray.errors import ConfigError
from negalign_ray.settings import load_config
from tests.actors.conftest import TOY, comparable, read_rows

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("ray_cluster")]
STEPS = 4


def weights(config) -> dict[str, torch.Tensor]:
    return load_file(config.run_dir / "model" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def as_if_cut_short(config, step: int, copy_to):
    """The run directory as a crash after `step` steps would have left it, but for later rows, which a resume cuts."""
    shutil.copytree(config.run_dir, copy_to)
    for path in (copy_to / "checkpoints").iterdir():
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    (copy_to / "summary.json").unlink()
    shutil.rmtree(copy_to / "model")
    return copy_to


ON_POLICY: tuple[str, ...] = ()
INITIAL_FIRST = ("sampling.online_from_step=2", "sampling.buffer_groups=8")
INTERVAL = ("sampling.schedule=interval", "sampling.refresh_every=2", "sampling.online_from_step=1")
TWO_RANKS = ("learners.num=2",)
# Four prompts, each in every step: from the second step on, every group holds answers of the rounds before.
NEAT = ("data.limit=5", "sampling.num_samples=4", "method.max_candidates=6")


def samples(run_dir) -> list[list[dict]]:
    """Of each rank."""
    return [read_rows(path) for path in sorted((run_dir / "samples").glob("rank-*.jsonl"))]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        pytest.param(ON_POLICY, (2,), id="on-policy, in the middle"),
        pytest.param(ON_POLICY, (1, 3), id="on-policy, at its ends", marks=pytest.mark.slow),
        pytest.param(INITIAL_FIRST, (1, 2, 3), id="initial model first", marks=pytest.mark.slow),
        pytest.param(INTERVAL, (1, 2, 3), id="interval", marks=pytest.mark.slow),
        pytest.param(TWO_RANKS, (1, 2, 3), id="two learner ranks", marks=pytest.mark.slow),
    ],
)
def test_a_run_resumed_after_any_step_equals_the_uninterrupted_one_bit_for_bit(toy_config, tmp_path, schedule, steps):
    settings = (
        *(f"learners.steps={STEPS}", "checkpoints.every=1", "checkpoints.keep_last=9"),
        *("checkpoints.keep_finished=true", "data.limit=8", *schedule),  # 8 prompts: some come twice
    )
    require_the_same_after(steps, toy_config(*settings), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_with_candidate_lists_resumed_after_any_step_equals_the_uninterrupted_one_bit_for_bit(
    toy_model, tmp_path
):
    keep = ("checkpoints.every=1", "checkpoints.keep_last=9", "checkpoints.keep_finished=true")
    paths = (f"model.path={toy_model}", f"run.dir={tmp_path}", f"learners.steps={STEPS}")
    config = load_config(preset="neat", overrides=[*TOY, *paths, *keep, *NEAT])
    require_the_same_after((1, 2, 3), config, tmp_path)
    [rows] = samples(config.run_dir)
    carried = [sum(response["carried"] for response in row["responses"]) for row in rows]
    assert carried == [0] * 4 + [2] * 4 * (STEPS - 1), "two earlier answers fill up each list"


def require_the_same_after(steps, config, tmp_path) -> None:
    train(config)
    straight = comparable(read_rows(config.run_dir / "metrics.jsonl"))
    trained_on = samples(config.run_dir)
    for step in steps:
        copy = as_if_cut_short(config, step, tmp_path / f"cut-{step}")
        again = find_checkpoint(copy)
        assert again.checkpoint.step == step
        summary = resume(again)
        assert summary["steps"] == STEPS
        assert comparable(read_rows(copy / "metrics.jsonl")) == straight, f"resumed after step {step}"
        assert samples(copy) == trained_on
        assert same(weights(again.config), weights(config))
    with pytest.raises(ConfigError, match="nothing is left to train"):
        find_checkpoint(config.run_dir)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stopped_run_goes_on_and_with_more_learners_and_samplers_learns_the_same_up_to_rounding(toy_config):
    straight = toy_config("learners.steps=6", name="straight")
    train(straight)
    stopped = toy_config(
        *("learners.steps=6", "guards.kl.limit=0.0", "guards.kl.window=2", "checkpoints.every=0"), name="stopped"
    )
    assert train(stopped)["steps"] == 2, "a guard has stopped it"
    again = find_checkpoint(stopped.run_dir, overrides=["learners.num=2", "samplers.num=2", "guards.enabled=false"])
    assert again.checkpoint.step == 2
    assert resume(again)["steps"] == 6
    rows = [read_rows(config.run_dir / "metrics.jsonl") for config in (straight, stopped)]
    assert [row["step"] for row in rows[1]] == [1, 2, 3, 4, 5, 6]
    losses = [[row["learner/loss"] for row in each] for each in rows]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert [row["learner/version"] for row in rows[1]] == [1, 2, 3, 4, 5, 6], "a version never starts anew"
    assert {row["sampler/staleness_steps"] for row in rows[1]} == {0.0}
    assert not (stopped.run_dir / "checkpoints").exists(), "a run that took all its steps has nothing to resume"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_guard_rolls_back_to_the_model_from_before_its_window(toy_config):
    config = toy_config(
        *("learners.steps=9", "checkpoints.every=1", "checkpoints.keep_last=9"),
        *("guards.kl.limit=0.0", "guards.kl.window=3", "guards.kl.action=rollback"),
        *("evaluation.enabled=true", "evaluation.num_prompts=2", "evaluation.num_benign=2"),
    )
    # kl is 0 before the first update; the window 1 to 3 fires at step 3 and nothing is older than step 1: it stays
    summary = train(config)
    assert (summary["steps"], summary["rolled_back_to"]) == (3, None)
    late = toy_config(
        *("learners.steps=9", "checkpoints.every=1", "checkpoints.keep_last=9"),
        *("guards.kl.limit=1.0e-3", "guards.kl.window=1", "guards.kl.action=rollback"),
        *("evaluation.enabled=true", "evaluation.num_prompts=2", "evaluation.num_benign=2"),
        name="late",
    )
    summary = train(late)
    back_to = summary["rolled_back_to"]
    assert back_to == summary["stopped_by"]["step"] - 1 >= 1, "the window is one step"
    folder = late.run_dir / "checkpoints" / f"step-{back_to:08d}"
    assert same(weights(late), load_file(folder / "learner" / "weight.safetensors"))
    assert find_checkpoint(late.run_dir).checkpoint.step == back_to
    assert summary["after"], "the table is that of the model that was rolled back to"

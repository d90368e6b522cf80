"""What a resumed run goes on from, and what is refused: all of it on files, before Ray starts."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from negalign_ray.actors.plan_checks import check_settings
from negalign_ray.actors.results import create_run_dir
from negalign_ray.actors.resume import find_checkpoint, keep_rows, rewind
from negalign_ray.actors.saving import LEARNER, Saver, read_rollout
from negalign_ray.cli import app
from negalign_ray.config import Config, NPOConfig
from negalign_ray.engines.weights import WeightBundle
from negalign_ray.errors import CheckpointError, ConfigError
from negalign_ray.loops.state import RolloutState
from negalign_ray.records import Group
from negalign_ray.settings import dump_config, load_config
from negalign_ray.settings.run_id import read_run_id
from tests.engines.test_weights import layers
from tests.loops.fakes import make_prompt

STEPS = 20


def state_after(step: int) -> RolloutState:
    return RolloutState(
        step=step,
        next_step=step,
        prompts_drawn=3,
        next_order_id=3,
        orders_issued=3,
        outcomes={"trained": 3},
        slots=(),
        waves=(),
        gathered=(),
        candidates=(),
        counts={"reissued": 1},
        failures_in_a_row=0,
        figures={0: {"guide/distance": 1 / 3}},
        clock=((4, "sample", (0.5,), {"tokens": 7}),),
        fleet={"references": [[[0, {"ab": -1 / 3}]]]},
    )


GROUP = Group(7, make_prompt(2), make_prompt(2).responses)


def checkpoint(config: Config, step: int, *, snapshot=None, replicas=None) -> None:
    """As the learners and the conductor write it; references are what they refer to."""
    saver = Saver(config, fetch=lambda references: references)
    (saver.store.begin(step) / LEARNER).mkdir()
    (saver.store.partial(step) / LEARNER / "weight.safetensors").write_bytes(bytes([step]) * 10)
    saver.save(state_after(step), [GROUP], snapshot, {"learner/loss": 1 / step}, replicas)
    saver.finish()


@pytest.fixture
def run(tmp_path):
    """A run that was cut short at step 13, with checkpoints at 5 and 10."""
    data = tmp_path / "rows.jsonl"
    data.write_text("{}\n")
    config = load_config(
        preset="quickstart",
        overrides=[f"run.dir={tmp_path}", "run.name=cut", f"data.path={data}", f"learners.steps={STEPS}"],
    )
    config.run_dir.mkdir()
    (config.run_dir / "config.yaml").write_text(dump_config(config))
    for name in ("metrics.jsonl", "samples/rank-0.jsonl"):
        (config.run_dir / name).parent.mkdir(exist_ok=True)
        rows = "".join(json.dumps({"step": step, "text": "é\u2028"}) + "\n" for step in range(1, 14))
        (config.run_dir / name).write_text(rows + '{"step": 14, "te', encoding="utf-8")
    for step in (5, 10):
        checkpoint(config, step)
    return config


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_bytes().splitlines()]


def test_a_run_goes_on_from_its_newest_checkpoint_with_its_own_settings(run):
    found = find_checkpoint(run.run_dir)
    assert found.config == run
    assert found.checkpoint.step == 10
    state, groups = read_rollout(found.checkpoint.path, [make_prompt(n) for n in range(4)])
    assert state == state_after(10)
    assert groups == [GROUP]


def test_a_run_that_was_scaled_goes_on_with_as_many_actors_unless_it_is_told_otherwise(run):
    checkpoint(run, 12, replicas={"samplers": 4, "references": 2})
    config = find_checkpoint(run.run_dir).config
    assert (config.samplers.num, config.references.num, config.scorers.num) == (4, 2, run.scorers.num)
    told = find_checkpoint(run.run_dir, overrides=["samplers.num=3", "samplers.cpus=0.1"]).config
    assert (told.samplers.num, told.references.num) == (3, 2)


def test_what_came_after_the_checkpoint_is_cut_off_and_results_go(run):
    for name in ("summary.json", "evaluation.json"):
        (run.run_dir / name).write_text('{"steps": 13}')
    (run.run_dir / "model").mkdir()
    found = find_checkpoint(run.run_dir)
    rewind(found)
    assert steps_in(run.run_dir / "metrics.jsonl") == list(range(1, 11))
    assert steps_in(run.run_dir / "samples" / "rank-0.jsonl") == list(range(1, 11))
    for name in ("summary.json", "evaluation.json", "model"):
        assert not (run.run_dir / name).exists()
    assert find_checkpoint(run.run_dir) == found


def test_a_torn_checkpoint_is_passed_over_and_the_run_goes_on_from_the_one_before(run):
    (run.run_dir / "checkpoints" / "step-00000010" / LEARNER / "weight.safetensors").write_bytes(b"torn")
    found = find_checkpoint(run.run_dir)
    assert found.checkpoint.step == 5
    rewind(found)
    assert [path.name for path in (run.run_dir / "checkpoints").iterdir()] == ["step-00000005"]


def test_settings_that_change_the_result_are_refused_by_name_and_others_are_not(run, tmp_path):
    allowed = ("samplers.num=3", "learners.num=2", "deadlines.pull_s=7", "guards.kl.limit=0.3", "checkpoints.every=1")
    assert find_checkpoint(run.run_dir, overrides=allowed).config.samplers.num == 3
    with pytest.raises(ConfigError, match=r"learners\.lr=.* there, 0\.5 now") as refused:
        find_checkpoint(run.run_dir, overrides=[*allowed, "learners.lr=0.5", "run.seed=9"])
    assert "run.seed=0 there, 9 now" in str(refused.value)
    assert "samplers.num" not in str(refused.value)
    (tmp_path / "rows.jsonl").write_text("{}\n{}\n")
    with pytest.raises(ConfigError, match=r"rows\.jsonl has changed"):
        find_checkpoint(run.run_dir)


def test_a_finished_run_says_that_nothing_is_left_to_train(run):
    (run.run_dir / "summary.json").write_text(json.dumps({"steps": STEPS}))
    for overrides in ([], ["learners.steps=99"]):
        with pytest.raises(ConfigError, match="has taken all of its 20 steps; nothing is left to train"):
            find_checkpoint(run.run_dir, overrides=overrides)


def test_a_checkpoint_of_the_last_step_has_nothing_left_to_train_either(run):
    checkpoint(run, STEPS)
    with pytest.raises(ConfigError, match=r"stands at step 20 of learners\.steps=20; nothing is left to train"):
        find_checkpoint(run.run_dir)


def test_a_run_without_a_checkpoint_says_how_to_start_it_again(run):
    shutil.rmtree(run.run_dir / "checkpoints")
    with pytest.raises(
        CheckpointError, match=r"it has no checkpoint.*checkpoints\.every, 7 steps.*run\.overwrite=true"
    ):
        find_checkpoint(run.run_dir)
    with pytest.raises(ConfigError, match=r"--resume .*nowhere: there is no"):
        find_checkpoint(run.run_dir / "nowhere")


def test_a_run_that_was_moved_is_resumed_where_it_is(run, tmp_path):
    moved = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(run.run_dir, moved)
    shutil.rmtree(run.run_dir)
    found = find_checkpoint(moved)
    assert found.config.run_dir == moved
    assert found.checkpoint.path.is_relative_to(moved)


def test_a_run_whose_checkpoints_are_gone_is_resumed_from_their_copies(run, tmp_path):
    checkpoints = run.checkpoints.model_copy(update={"url": str(tmp_path / "bucket")})
    config = run.model_copy(update={"checkpoints": checkpoints})
    checkpoint(config, 15)
    (run.run_dir / "config.yaml").write_text(dump_config(config))
    shutil.rmtree(run.run_dir / "checkpoints")
    found = find_checkpoint(run.run_dir)
    assert found.checkpoint.step == 15
    assert found.checkpoint.faults() == []


def test_a_run_whose_checkpoints_are_all_torn_is_resumed_from_their_copies(run, tmp_path):
    checkpoints = run.checkpoints.model_copy(update={"url": str(tmp_path / "bucket")})
    config = run.model_copy(update={"checkpoints": checkpoints})
    (run.run_dir / "config.yaml").write_text(dump_config(config))
    checkpoint(run, 15)
    for torn in (run.run_dir / "checkpoints").iterdir():
        (torn / "rollout.json").write_text("torn")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints in"):
        find_checkpoint(run.run_dir)  # there is no copy
    shutil.rmtree(run.run_dir / "checkpoints")
    checkpoint(config, 15)
    (run.run_dir / "checkpoints" / "step-00000015" / "rollout.json").write_text("torn")
    found = find_checkpoint(run.run_dir)
    assert found.checkpoint.step == 15
    assert found.checkpoint.faults() == []


def begun(run: Config, tmp_path: Path) -> Config:
    """The same run, with copies elsewhere, at its start: nothing is trained, what was there has been overwritten."""
    checkpoints = run.checkpoints.model_copy(update={"url": str(tmp_path / "bucket")})
    config = run.model_copy(update={"checkpoints": checkpoints, "run": run.run.model_copy(update={"overwrite": True})})
    (run.run_dir / "metrics.jsonl").touch()
    create_run_dir(config)
    return config


def test_a_run_that_overwrote_another_does_not_go_on_from_the_copies_of_that_one(run, tmp_path):
    checkpoint(begun(run, tmp_path), 15)
    config = begun(run, tmp_path)
    with pytest.raises(CheckpointError, match="another run of this name has written it"):
        find_checkpoint(run.run_dir)
    checkpoint(config, 5)
    shutil.rmtree(run.run_dir / "checkpoints")
    assert find_checkpoint(run.run_dir).checkpoint.step == 5


def test_a_run_directory_that_is_lost_but_for_its_settings_knows_its_copies_by_their_settings(run, tmp_path):
    checkpoint(begun(run.model_copy(update={"method": NPOConfig()}), tmp_path), 15)
    config = begun(run, tmp_path)
    checkpoint(config, 5)
    shutil.rmtree(run.run_dir)
    run.run_dir.mkdir()
    (run.run_dir / "config.yaml").write_text(dump_config(config))
    found = find_checkpoint(run.run_dir)
    assert found.checkpoint.step == 5
    rewind(found)
    assert read_run_id(run.run_dir) == found.checkpoint.info["run"] is not None


def test_after_a_roll_back_there_are_no_later_copies_either(run, tmp_path):
    config = begun(run, tmp_path)
    for step in (10, 14, 18):
        checkpoint(config, step)
    saver = Saver(config, fetch=lambda references: references)
    found = saver.newest_before(15)
    assert found is not None
    assert saver.finish() == []
    assert found.step == 14
    assert [path.name for path in (tmp_path / "bucket" / "cut").iterdir()] == ["step-00000014"]


def test_the_samplers_snapshot_is_part_of_a_checkpoint_where_it_is_neither_the_first_nor_the_last_model(run):
    bundle = WeightBundle.from_tensors(layers(), version=12)
    checkpoint(run, 15, snapshot=bundle)
    found = find_checkpoint(run.run_dir).checkpoint
    assert {"snapshot.bin", "snapshot.json"} < set(found.files)
    assert WeightBundle.load(found.path).checksum == bundle.checksum


def test_a_roll_back_goes_to_before_the_window_and_leaves_nothing_newer(run):
    saver = Saver(run, fetch=lambda references: references)
    assert saver.newest_before(5) is None
    assert len(saver.store.checkpoints()) == 2, "there is nothing to go back to, so nothing is deleted"
    found = saver.newest_before(10)
    assert found is not None
    assert found.step == 5
    assert [each.step for each in saver.store.checkpoints()] == [5]


def test_a_group_of_a_prompt_that_is_gone_is_an_error_that_names_the_data(run):
    path = find_checkpoint(run.run_dir).checkpoint.path
    with pytest.raises(CheckpointError, match=r"a group of prompt 2, which data\.path does not hold"):
        read_rollout(path, [make_prompt(n) for n in (0, 1)])


def test_a_disk_that_is_full_is_an_error_that_names_the_setting(run):
    saver = Saver(run, fetch=lambda references: references)
    with pytest.raises(CheckpointError, match=r"step 15 could not be written.*checkpoints\.every=0"):
        saver.save(replace(state_after(15)), [GROUP], None, {})  # no learner has made the folder


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_step_whose_metric_is_not_finite_has_a_checkpoint_that_is_never_the_best(run, loss):
    settings = run.checkpoints.model_copy(update={"keep_best": "learner/loss", "keep_last": 1})
    saver = Saver(run.model_copy(update={"checkpoints": settings}), fetch=lambda references: references)
    for step, value in ((15, loss), (16, 0.5), (17, loss)):
        saver.store.begin(step)
        saver.save(state_after(step), [GROUP], None, {"learner/loss": value})
    assert [(each.step, each.metric) for each in saver.store.checkpoints()] == [(16, 0.5), (17, None)]


def test_a_metric_or_url_that_does_not_exist_is_refused_with_the_plan(run):
    def check(**settings):
        checkpoints = run.checkpoints.model_copy(update=settings)
        check_settings(run.model_copy(update={"checkpoints": checkpoints}), learner_dtype="float32")

    check(keep_best="scorer/toxicity_sample", url="memory://x")
    with pytest.raises(ConfigError, match=r"checkpoints\.keep_best='learner/los' is no metric"):
        check(keep_best="learner/los")
    with pytest.raises(ConfigError, match=r"checkpoints\.url=nosuch://x cannot be opened"):
        check(url="nosuch://x")


def test_rows_are_kept_byte_for_byte(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"step": 1, "a": "\xc3\xa9"}\n{"step":2}\n{"step": 3}\n{"st')
    keep_rows(path, last_step=2)
    assert path.read_bytes() == b'{"step": 1, "a": "\xc3\xa9"}\n{"step":2}\n'
    keep_rows(tmp_path / "missing.jsonl", last_step=2)
    assert not (tmp_path / "missing.jsonl").exists()


@pytest.mark.parametrize("line", [b'{"st', b"[1]", b'{"stop": 2}', b'{"step": null}', b'"\xff"', b""])
def test_a_broken_line_in_the_middle_is_an_error_that_names_it_and_the_file_stays(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    content = b'{"step": 1}\n' + line + b'\n{"step": 3}\n'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"rows\.jsonl:2 is no row with a step .*; remove the line"):
        keep_rows(path, last_step=2)
    assert path.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["rows.jsonl"]


def test_the_command_takes_no_preset_beside_the_run_and_gives_the_error_its_own_exit_code(run):
    result = CliRunner().invoke(app, ["train", "--resume", str(run.run_dir), "--preset", "d2o"])
    assert result.exit_code == ConfigError.exit_code
    shutil.rmtree(run.run_dir / "checkpoints")
    result = CliRunner().invoke(app, ["train", "--resume", str(run.run_dir)])
    assert result.exit_code == CheckpointError.exit_code == 7

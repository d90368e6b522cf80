"""The report of `negalign-ray plan`, and the command, on the toy model: nothing is started."""

import json
import re

import pytest
from rich.console import Console
from typer.testing import CliRunner

from negalign_ray import cli
from negalign_ray.actors.memory import Memory, ModelSize
from negalign_ray.actors.packing import Node, Placement, seat
from negalign_ray.errors import ConfigError
from negalign_ray.planning.cautions import (
    NEVER_ONLINE,
    device_warnings,
    kv_cache_warnings,
    memory_warnings,
    object_store_warnings,
    online_warnings,
)
from negalign_ray.planning.cluster_spec import parse_cluster
from negalign_ray.planning.render import render
from negalign_ray.planning.report import Report, make_report
from negalign_ray.settings import dump_config, list_presets, load_config
from tests.planning.figures import bench_figures, make_plan_of

GIB = 2**30


def report_on(config, cluster: str, **more) -> Report:
    return make_report(config, nodes=parse_cluster(cluster), where="the planned cluster", **more)


def shown(report: Report) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(report))
    return console.export_text()


@pytest.fixture
def bench_file(tmp_path, toy_model):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(bench_figures(model=str(toy_model))))
    return path


def test_everybody_has_a_seat_and_a_reader_sees_which(toy_config):
    config = toy_config("samplers.num=3", "samplers.cpus=2", "learners.cpus=2")
    report = report_on(config, "2x(5cpu,64gb)")
    assert report.missing is None
    text = shown(report)
    assert re.search(r"node-0 +│ 2 samplers, 1 reference, 1 scorer +│ +4\.2 of 5 ", text)
    assert re.search(r"node-1 +│ 1 sampler, 1 learner +│ +4 of 5 ", text)


def test_nodes_that_look_alike_share_a_row(toy_config):
    config = toy_config(
        "samplers.num=100", "samplers.cpus=1", "sampling.buffer_groups=400", "learners.groups_per_step=100"
    )
    text = shown(report_on(config, "26x(4cpu,64gb)"))
    assert re.search(r"node-0 \.\. node-24 \(25\) +│ 4 samplers +│ +4 of 4 ", text)


def test_a_run_without_a_place_says_so_and_has_no_times(toy_config, bench_file):
    report = report_on(toy_config("samplers.cpus=8"), "2x(4cpu)", bench=[bench_file])
    assert report.missing is not None
    assert "no place for 1 of 1 sampler bundle(s) of 8 CPU each" in report.missing
    assert (report.estimate, report.prediction) == (None, None)


def test_the_evaluation_after_training_needs_seats_too(toy_config):
    head = '[{"name": "judge", "kind": "sklearn", "target": "alt-profanity-check"}]'
    evaluation = ("evaluation.enabled=true", f"evaluation.heads={head}", "references.cpus=1.5", "learners.cpus=0.1")
    report = report_on(toy_config(*evaluation), "1x(2cpu)")
    assert report.missing is not None
    assert report.missing.startswith("The evaluation after training: no place for 1 of 1 evaluation reference")


def test_figures_of_a_bench_give_the_time_of_a_step_and_the_simulation_agrees(toy_config, bench_file):
    report = report_on(toy_config(), "1x(8cpu,64gb)", bench=[bench_file], simulated=True)
    assert report.estimate is not None
    assert report.prediction is not None
    assert report.prediction.step_s == pytest.approx(report.estimate.step_s, rel=0.1)
    text = shown(report)
    for part in ("expected:", "bottleneck: ", "balance: ", "simulated:", "groups/s", "assumed: "):
        assert part in text


def test_a_simulation_without_measurements_is_refused(toy_config):
    with pytest.raises(ConfigError, match="--simulate needs measured seconds: give --bench FILE"):
        report_on(toy_config(), "1x(8cpu)", simulated=True)


def test_figures_of_another_model_are_scaled_by_its_size_and_said_to_be(toy_config, toy_model, tmp_path):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(bench_figures(model="other")))  # 1,000,000 parameters
    report = report_on(toy_config(), "1x(8cpu)", bench=[path])
    scale = ModelSize.of(toy_model).num_params / 1e6
    assert any(
        note.startswith("measured with other; ") and f"is {scale:.3g} times" in note for note in report.costs.notes
    )
    path.write_text(json.dumps(bench_figures("step", model="other")))
    with pytest.raises(ConfigError, match="measured other, whose size the file does not tell"):
        report_on(toy_config(), "1x(8cpu)", bench=[path])


# The command


def test_the_command_reads_a_file_prints_the_plan_and_writes_its_figures(toy_config, bench_file, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "out", Console(width=120))
    for name, value in cli.QUIET.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "run.yaml").write_text(dump_config(toy_config()))
    line = ["plan", str(tmp_path / "run.yaml"), "--cluster", "2x(8cpu,64gb)", "--bench", str(bench_file), "--simulate"]
    result = CliRunner().invoke(cli.app, [*line, "--json", str(tmp_path / "plan.json")])
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["missing"] is None
    assert [len(node["actors"]) for node in figures["nodes"]] == [4, 0]
    assert figures["prediction"]["idle_frac"]["sampler"] > 0
    assert figures["memory_bytes"]["learner"]["total"] > figures["memory_bytes"]["learner"]["process"]

    result = CliRunner().invoke(cli.app, ["plan", str(tmp_path / "run.yaml"), "--cluster", "1x(0.1cpu)"])
    assert result.exit_code == 5, "as a run that has no place"


# Warnings


def warn_of_memory(memory: Memory, *, gpus: float = 0.0, num: int = 1, node: Node) -> list[str]:
    places = [Placement("learner", num, cpus=1, gpus=gpus, threads=1)]
    return list(memory_warnings(places, {"learner": memory}, seat(places, [node]), [node]))


def test_a_node_with_less_memory_than_its_actors_need_is_named():
    node = Node("small", 4, memory_bytes=4 * GIB)
    (warning,) = warn_of_memory(Memory(weights=GIB, process=GIB), num=3, node=node)
    assert warning.startswith("small has 4.0 GiB of memory and its actors need about 6.0 GiB")
    assert warn_of_memory(Memory(weights=GIB, process=GIB), num=2, node=node) == []


def test_a_device_is_counted_apart_from_its_host():
    node = Node("gpu", 4, (1.0,), memory_bytes=4 * GIB, gpu_bytes=8 * GIB)
    (warning,) = warn_of_memory(Memory(weights=5 * GIB, process=GIB), gpus=0.5, num=2, node=node)
    assert warning.startswith("GPU 0 of gpu has 8.0 GiB and the actors on it need about 10.0 GiB")
    assert warn_of_memory(Memory(weights=4 * GIB, process=GIB), gpus=0.5, num=2, node=node) == []


def test_a_kv_cache_too_small_for_the_sequences_at_once_is_named_with_the_setting():
    plan = make_plan_of("learners.groups_per_step=4", "sampling.num_samples=3", "samplers.max_num_seqs=64")
    size = ModelSize(1000, 100, hidden_size=8, num_layers=2, kv_width=8)  # 2 * 2 * 8 * 4 = 128 bytes a token
    longest = 256 + 64  # prompt and answer: 40,960 bytes a sequence
    (warning,) = kv_cache_warnings(plan, size, Memory(kv_cache=5 * 128 * longest))
    assert "holds 5 sequences of 320 tokens, and 12 run at once; raise samplers.kv_cache_gib" in warning
    assert list(kv_cache_warnings(plan, size, Memory(kv_cache=12 * 128 * longest))) == []


def test_ranks_that_could_share_a_device_are_warned_of_nccl():
    assert "set learners.gpus=1" in next(device_warnings(make_plan_of("learners.gpus=0.5", "learners.num=2")))
    assert list(device_warnings(make_plan_of("learners.gpus=0.5"))) == []


def test_weights_that_outgrow_the_object_store_are_told_before_they_spill():
    assert list(object_store_warnings(Memory(weights=2 * GIB))) == []
    (warning,) = object_store_warnings(Memory(weights=3 * GIB))
    assert "two versions of the weights (6.0 GiB) exceed the object store of 4 GiB" in warning


def test_a_run_too_short_to_train_on_answers_of_its_own_is_told_so():
    def warned(start: int, steps: int, *more: str) -> list[str]:
        return list(
            online_warnings(make_plan_of(f"sampling.online_from_step={start}", f"learners.steps={steps}", *more))
        )

    (warning,) = warned(200, 40)
    assert warning.startswith("sampling.online_from_step=200 is not below learners.steps=40: all answers come from the")
    assert [len(warned(*numbers)) for numbers in ((40, 40), (39, 40), (0, 40), (1_000_000, 40))] == [1, 0, 0, 0]


def test_no_preset_is_told_so_unless_it_is_shortened():
    """`never` in a preset is its purpose: d2o_no_sampling, rrhf, dpo_full."""
    for preset in list_presets():
        config = load_config(preset=preset.name)
        start, steps = config.sampling.online_from_step, config.learners.steps
        assert start < steps or start >= NEVER_ONLINE or not config.sampling.num_samples, preset.name

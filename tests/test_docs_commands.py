"""Every command line of the documents is either executed here, as it stands, or listed with the reason why it is not.

Executed on the toy model, in a folder that holds what the lines name. A line that would train gets `--dry-run`, which
makes every check of a run and starts nothing; ` > file` and comments are the shell's.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from negalign_ray import cli
from negalign_ray.data import sources
from negalign_ray.errors import PlacementError
from negalign_ray.planning.cluster_spec import parse_cluster
from negalign_ray.rewards.judge import fit_judge
from tests.pages import PAGES, ROOT, commands, documented_file, parse, python_blocks
from tests.planning.figures import bench_figures
from tests.report.runs import make_run

EXECUTED = {"presets", "check", "judge", "train", "plan", "grafana", "report", "top", "logs", "generate"}

# Why a line is not executed -> the lines. `test_...` is the test that runs the same command, on real actors where it
# needs some; those of tests/cluster_configs run where their cluster can be started.
ONLY_PARSED = {
    "in a sentence: a command's name, or words in capitals to be replaced": [
        "negalign-ray train",
        "negalign-ray plan",
        "negalign-ray bench",
        "negalign-ray diagnose",
        "negalign-ray bench --json FILE",
        "negalign-ray data check FILE",
        "negalign-ray data judge FILE OUT",
        "negalign-ray report RUN",
        "negalign-ray stop NAME",
        "negalign-ray stop RUN",
        "negalign-ray top RUN",
        "negalign-ray train --resume RUN",
        "negalign-ray train --resume runs/NAME",
        "negalign-ray train-reward DATA OUT",
    ],
    "samplers and evaluators on Ray: test_train_then_evaluate_then_generate": [
        "negalign-ray evaluate runs/mine/model --config runs/mine/config.yaml --base smollm2-135m-instruct "
        "--json after.json",
        "negalign-ray evaluate runs/d2o/model --config runs/d2o/config.yaml",
        "negalign-ray evaluate runs/d2o/model --config runs/d2o/config.yaml --base smollm2-135m-instruct",
    ],
    "a server that judges: test_every_pair_is_asked_in_both_orders_with_the_criterion_of_its_kind": [
        "negalign-ray evaluate runs/d2o/model --config runs/d2o/config.yaml --base smollm2-135m-instruct --set "
        '"evaluation.judge={url: http://localhost:8000/v1, model: MODEL, token_env: JUDGE_API_KEY}"',
    ],
    "data sets from a hub: test_the_harness_itself_measures_a_model_on_a_task_of_ones_own": [
        "negalign-ray evaluate runs/d2o/model --config runs/d2o/config.yaml --lm-eval hellaswag,arc_easy "
        '--lm-eval-options "--limit 100"',
    ],
    "the extra `tracking`: test_wandb_keeps_an_offline_run_in_the_run_directory and its like": [
        "negalign-ray train --preset d2o --set data.path=my_negatives.jsonl "
        '--set "run.trackers=[wandb, mlflow, trackio]"',
    ],
    "a checkpoint of a run: test_a_run_resumed_after_any_step_equals_the_uninterrupted_one_bit_for_bit": [
        "negalign-ray train --resume runs/d2o",
        "negalign-ray train --resume runs/d2o --set learners.num=2 --set samplers.num=4",
        "negalign-ray train --resume runs/my_run",
        "negalign-ray train --resume runs/mine",
    ],
    "a run that goes on: test_a_second_terminal_sees_and_stops_the_run_and_neither_secrets_nor_texts_are_left_behind": [
        "negalign-ray status d2o",
        "negalign-ray status runs/d2o",
        "negalign-ray logs d2o",
        "negalign-ray stop d2o",
        "negalign-ray stop runs/d2o",
        "negalign-ray top d2o",
        "negalign-ray top d2o --address 10.0.0.5:6379",
    ],
    "samplers come and go: test_samplers_scorers_and_references_come_and_go_and_no_group_is_lost_or_trained_twice": [
        "negalign-ray scale d2o samplers=4",
        "negalign-ray scale d2o samplers=2 scorers=2 references=1",
        "negalign-ray scale runs/d2o samplers=4 scorers=2",
    ],
    "a cluster with a dashboard: test_a_run_is_submitted_watched_and_stopped_from_outside_the_cluster": [
        "negalign-ray submit my_run.yaml",
        "negalign-ray submit my_run.yaml --address http://localhost:8265 --set run.name=first",
    ],
    "it imports every library in processes of their own: test_only_a_problem_is_a_failure_for_scripts": [
        "negalign-ray doctor",
    ],
    "minutes: test_every_section_gives_its_figures": [
        "negalign-ray bench --json bench.json",
        "negalign-ray bench --only learner,sampler",
        "negalign-ray bench --only step,async",
        "negalign-ray bench --set model.path=FOLDER",
    ],
    "several whole runs: test_two_methods_two_seeds_two_steps_then_nothing_left_to_do": [
        "negalign-ray compare plan.yaml --out runs/compare",
        "negalign-ray compare docs/runs/compare_diasafety.yaml",
        "negalign-ray compare docs/runs/compare_diasafety.yaml --out runs/compare",
        "negalign-ray compare docs/runs/compare_diasafety_gate.yaml --out runs/compare_gate",
    ],
    "a learner on Ray: test_the_command_leaves_a_reward_model_a_report_and_the_rest": [
        "negalign-ray train-reward labelled.jsonl rewards/mine",
        "negalign-ray train-reward labelled.jsonl judges/reward --frac 0.4",
        "negalign-ray train-reward labelled.jsonl judges/two --config reward.yaml",
        "negalign-ray train-reward judges/diasafety/rest.jsonl judges/reward --frac 0.4 --set data.on_bad_row=skip",
        "negalign-ray train-reward judges/diasafety/rest.jsonl judges/reward --set data.frac=0.4 "
        "--set data.on_bad_row=skip",
    ],
    "seconds, and a finished run: test_predict_train_and_hold_the_prediction_against_the_run": [
        "negalign-ray diagnose --preset dpo --set data.path=pairs.jsonl",
        "negalign-ray diagnose --preset dpo --set data.path=my_pairs.jsonl --set run.name=mine",
        "negalign-ray diagnose --config docs/runs/diasafety.yaml --max-answers 64",
        "negalign-ray diagnose --run runs/mine",
        "negalign-ray diagnose --run runs/diasafety",
    ],
}


# docs/planning.md shows with it how a cluster that is too small is refused.
TOO_SMALL = (
    "negalign-ray plan --preset quickstart --set samplers.num=4 --set samplers.cpus=8 --set samplers.gpus=1 "
    '--cluster "1x(8cpu,64gb) + 1x(8cpu,64gb,1gpu:80gb)"'
)


def bare(line: str) -> str:
    """Without what is the shell's: a comment, a redirection, repeated spaces."""
    return " ".join(re.sub(r" #.*| > .*", "", line).split())


LINES = sorted({bare(line) for page in PAGES for line in commands(page)})
LISTED = [line for lines in ONLY_PARSED.values() for line in lines]
TO_RUN = [line for line in LINES if line not in LISTED]


def test_every_line_is_executed_or_listed_with_a_reason():
    assert len(set(LISTED)) == len(LISTED)
    gone = set(LISTED) - set(LINES)
    assert not gone, "no document shows it any more"
    unplaced = [line for line in TO_RUN if parse(line).command not in EXECUTED]
    assert not unplaced, "put it into ONLY_PARSED, with the test that runs the same command"


def test_the_tests_that_are_named_as_reasons_exist():
    named = set(re.findall(r"test_\w+", " ".join(ONLY_PARSED)))
    there = {
        name for path in (ROOT / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert named <= there


JUDGES = {  # folder of `data judge` -> what its judge reads
    "mine": "response",
    "gate": "response",
    "hh": "response",
    "diasafety": "prompt_response",
    "diasafety_gate": "prompt_response",
}


def lines_of(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory, toy_model) -> Path:
    """Everything that the lines name: data, settings, figures of a bench, runs, judges."""
    folder = tmp_path_factory.mktemp("documents")
    negatives = [{"prompt": f"Is it {n}?", "rejected": f"No, fool {n}.", "behaviour": "scorn"} for n in range(40)]
    pairs = [row | {"chosen": f"Gladly, it is {n}."} for n, row in enumerate(negatives)]
    labelled = [
        {"prompt": row["prompt"], "response": row[key], "label": label}
        for row in pairs
        for key, label in (("rejected", "unsafe"), ("chosen", "safe"))
    ]
    files = {
        "my_negatives.jsonl": negatives,
        "hh_harmless_pairs.jsonl": pairs,
        "labelled.jsonl": labelled,
        "diasafety_train.jsonl": labelled,
        **{f"judges/{name}/rest.jsonl": labelled for name in JUDGES},
    }
    for name, rows in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(lines_of(rows))
    bad, good = ({row[key]: n for n, row in enumerate(pairs)} for key in ("rejected", "chosen"))
    for name, reads in JUDGES.items():
        fit_judge(bad, good, text_input=reads, seed=0).save(folder / "judges" / name / "judge")
    documented_file("my_run.yaml", folder)
    (folder / "hinge.py").write_text(next(b.text for b in python_blocks(ROOT / "docs/python.md") if "METHOD" in b.text))
    for name, sections in {"bench": (), "roles": ("sampler", "learner"), "runs": ("step", "async")}.items():
        (folder / f"{name}.json").write_text(json.dumps(bench_figures(*sections)))
    for name in ("d2o", "dpo", "mine", "quickstart"):
        run = make_run(folder / "runs" / name)
        (run / "model").symlink_to(toy_model)
        (run / "logs").mkdir()
        (run / "logs" / "sampler-0.log").write_text("version 1\n")
    (folder / "smollm2-135m-instruct").symlink_to(toy_model)  # a folder comes before a packaged model of that name
    (folder / "docs").symlink_to(ROOT / "docs")
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy of its own for every line, on a machine that is large enough whichever this one is."""
    folder = tmp_path / "here"
    shutil.copytree(made, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sources.PACKAGED, "quickstart", folder / "my_negatives.jsonl")
    monkeypatch.setattr("negalign_ray.cli.planning.this_machine", lambda: parse_cluster("1x(16cpu,64gb)"))
    monkeypatch.setattr("negalign_ray.actors.run.require_memory_here", lambda plan, places: None)
    monkeypatch.setattr(cli, "out", Console(width=200))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, value in cli.QUIET.items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.mark.parametrize("line", TO_RUN)
@pytest.mark.usefixtures("here")
def test_a_documented_line_runs(line):
    more = ["--dry-run"] if parse(line).command == "train" and "--dry-run" not in line else []
    result = CliRunner().invoke(cli.app, [*shlex.split(line)[1:], *more])
    assert result.exit_code == (PlacementError.exit_code if line == TOO_SMALL else 0), result.output
    assert result.stdout.strip()

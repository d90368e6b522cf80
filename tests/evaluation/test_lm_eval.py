"""The harness's command, its results and its failures; a stand-in process takes its place, but for the last test."""

import json
import stat
import sys
from importlib.util import find_spec

import pytest

from negalign_ray.errors import ConfigError, RoleError, StallError
from negalign_ray.evaluation.lm_eval import LmEval, metrics_of

RESULTS = {
    "results": {
        "arc_easy": {
            "alias": "arc_easy",
            "acc,none": 0.5,
            "acc_stderr,none": 0.125,
            "acc_norm,none": 0.25,
            "acc_norm_stderr,none": "N/A",
            "exact_match,strict": 1,
        },
        "group": {"alias": " - group", " ": " "},
    }
}


def harness(folder, *, body):
    """A program in the place of python: it gets `-m lm_eval ...` and runs `body` with `out` = the output folder."""
    path = folder / "harness"
    path.write_text(
        f"#!{sys.executable}\nimport json, pathlib, sys, time\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('--output_path') + 1]) / 'model'\n"
        f"{body}\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


WRITES = f"""
out.mkdir(parents=True, exist_ok=True)
calls = out.parent / "calls"
calls.write_text((calls.read_text() if calls.exists() else "") + "x")
(out / "results_2026.json").write_text({json.dumps(json.dumps(RESULTS))})
"""


def run(lm_eval, folder, *, deadline_s=60.0, model="model"):
    return lm_eval.run(folder / model, out=folder / "out", device="cpu", dtype="float32", deadline_s=deadline_s)


def test_the_command_names_the_folder_the_tasks_and_no_remote_code(tmp_path):
    lm_eval = LmEval(("arc_easy", "piqa"), ("--limit", "100"), python="python")
    command = lm_eval.command(tmp_path / "a,b", out=tmp_path / "out", device="cpu", dtype="bfloat16")
    assert command[:5] == ["python", "-m", "lm_eval", "--model", "hf"]
    options = dict(zip(command[3::2], command[4::2], strict=True))
    assert json.loads(options["--model_args"]) == {
        "pretrained": f"{tmp_path}/a,b",
        "dtype": "bfloat16",
        "trust_remote_code": False,
    }
    assert (options["--tasks"], options["--device"], options["--limit"]) == ("arc_easy,piqa", "cpu", "100")
    assert options["--output_path"] == str(tmp_path / "out")


def test_metrics_keep_their_errors_and_lose_what_is_no_number():
    assert metrics_of(RESULTS) == {
        "arc_easy": {
            "acc": {"value": 0.5, "stderr": 0.125},
            "acc_norm": {"value": 0.25, "stderr": None},
            "exact_match (strict)": {"value": 1.0, "stderr": None},
        }
    }


def test_results_are_read_and_the_same_command_is_not_run_twice(tmp_path):
    lm_eval = LmEval(("arc_easy",), python=harness(tmp_path, body=WRITES))
    assert run(lm_eval, tmp_path)["arc_easy"]["acc"]["value"] == 0.5
    assert run(lm_eval, tmp_path) == metrics_of(RESULTS)
    assert (tmp_path / "out" / "calls").read_text() == "x"
    run(lm_eval, tmp_path, model="other")
    assert (tmp_path / "out" / "calls").read_text() == "xx"


def test_a_harness_that_fails_says_its_last_line(tmp_path):
    lm_eval = LmEval(("arc",), python=harness(tmp_path, body="print('one'); sys.exit('Tasks not found: arc')"))
    with pytest.raises(RoleError, match=r"lm_eval\[0\]: it ended with status 1: Tasks not found: arc \(log: "):
        run(lm_eval, tmp_path)
    assert not (tmp_path / "out" / "command.json").exists()


def test_a_harness_that_writes_nothing_is_a_failure(tmp_path):
    with pytest.raises(RoleError, match="wrote no results"):
        run(LmEval(("arc",), python=harness(tmp_path, body="")), tmp_path)


@pytest.mark.timeout(60)
def test_a_harness_that_hangs_meets_its_deadline(tmp_path):
    with pytest.raises(StallError, match=r"deadlines\.lm_eval_s=0\.3 s"):
        run(LmEval(("arc",), python=harness(tmp_path, body="time.sleep(600)")), tmp_path, deadline_s=0.3)


KNOWN = """
class TaskManager:
    def __init__(self, include_path=None):
        self.all_tasks = ["arc_easy", "hellaswag"] + ([include_path + "_task"] if include_path else [])

    def match_tasks(self, names):
        return [task for name in names for task in self.all_tasks if task == name]
"""


@pytest.fixture
def known_tasks(tmp_path, monkeypatch):
    """An lm_eval that knows two tasks, for the processes that are started."""
    (tmp_path / "lm_eval").mkdir()
    (tmp_path / "lm_eval" / "__init__.py").touch()
    (tmp_path / "lm_eval" / "tasks.py").write_text("print('library noise')\n" + KNOWN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("known_tasks")
def test_a_misspelt_task_is_refused_with_near_names():
    LmEval(("arc_easy", "hellaswag", "my/task.yaml")).require_tasks()
    with pytest.raises(ConfigError, match=r"no task helaswag \(near it: hellaswag\), zzz; .* --lm-eval-options"):
        LmEval(("arc_easy", "helaswag", "zzz")).require_tasks()


@pytest.mark.usefixtures("known_tasks")
@pytest.mark.parametrize(
    "options", [("--include_path", "mine", "--limit", "9"), ("--limit", "9", "--include_path=mine")]
)
def test_tasks_of_ones_own_are_known(options):
    LmEval(("mine_task",), options).require_tasks()
    with pytest.raises(ConfigError, match="no task mine_task"):
        LmEval(("mine_task",)).require_tasks()


def test_a_harness_that_cannot_be_asked_is_not_in_the_way(tmp_path, caplog):
    failing = harness(tmp_path, body="")  # no --output_path among its arguments: it fails
    LmEval(("arc",), python=failing).require_tasks()
    assert "could not be checked (ValueError: '--output_path' is not in list)" in caplog.text
    LmEval(("arc",), python=str(tmp_path / "absent")).require_tasks()


def test_without_the_harness_the_command_that_installs_it_is_shown():
    with pytest.raises(ConfigError, match=r"not installed; `pip install --editable '.\[lm-eval\]'`"):
        LmEval(("arc",)).require_installed(is_installed=lambda: False)
    LmEval(("arc",)).require_installed(is_installed=lambda: True)


@pytest.mark.parametrize("tasks", [(), ("",), ("arc", "")])
def test_no_task_is_refused(tasks):
    with pytest.raises(ConfigError, match="names no task"):
        LmEval(tasks)


@pytest.mark.parametrize("options", [("--model", "vllm"), ("--output_path=x",), ("-t", "arc")])
def test_options_that_this_command_sets_are_refused(options):
    with pytest.raises(ConfigError, match="is set by this command"):
        LmEval(("arc",), options)


TASK = """
task: animals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lm_eval") is None, reason="not installed: lm_eval")
def test_the_harness_itself_measures_a_model_on_a_task_of_ones_own(toy_model, tmp_path):
    """Without a network: the rows are a file. Four questions, so that the accuracy is a number of quarters."""
    rows = tmp_path / "rows.jsonl"
    asked = [{"question": f"Predators {n} eat", "choices": ["grass", "bunnies"], "answer": n % 2} for n in range(4)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in asked))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "animals.yaml").write_text(TASK.format(rows=rows))
    include = ("--include_path", str(tmp_path / "tasks"))
    with pytest.raises(ConfigError, match=r"no task animalz \(near it: animals"):
        LmEval(("animalz",), include).require_tasks()
    lm_eval = LmEval(("animals",), include)
    lm_eval.require_installed()
    lm_eval.require_tasks()
    found = lm_eval.run(toy_model, out=tmp_path / "out", device="cpu", dtype="float32", deadline_s=280.0)
    assert set(found) == {"animals"}
    assert found["animals"]["acc"]["value"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert found["animals"]["acc"]["stderr"] is not None

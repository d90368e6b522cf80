"""What a newcomer runs into: each ends at once in one message that names the place, the value and the remedy."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from negalign_ray import cli
from negalign_ray.actors.host_memory import require_memory
from negalign_ray.actors.memory import GIB, Memory
from negalign_ray.actors.packing import Node, Placement, require_seats
from negalign_ray.errors import PlacementError
from negalign_ray.machine import MachineMemory

ROOT = Path(__file__).resolve().parents[1]
ROWS = [{"prompt": f"Question {number}?", "rejected": f"A rude answer {number}."} for number in range(30)]
LONG_TOKENS = (
    "--set",
    "data.max_prompt_tokens=600",
    "--set",
    "data.max_response_tokens=600",
)  # the toy model's are bytes


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


FILES = {
    "rows.jsonl": lines(ROWS),
    "a folder with spaces/my rows.jsonl": lines(ROWS),
    "columns.jsonl": lines({"question": row["prompt"], "bad_answer": row["rejected"]} for row in ROWS),
    "typo.jsonl": lines({"prompt": row["prompt"], "rejcted": row["rejected"]} for row in ROWS),
    "empty.jsonl": "",
    "prose.jsonl": "These are my notes.\n",
    "notes.txt": "These are my notes.\n",
    "torn.jsonl": lines(ROWS[:5]) + '{"prompt": "x", "rejected": \n',
    "typo.yaml": "extends: d2o\nsampling:\n  num_sample: 4\nlearner:\n  steps: 3\n",
    "tabs.yaml": "extends: d2o\nsampling:\n\tnum_samples: 4\n",
    "list.yaml": "- a\n- b\n",
    "runs/taken/metrics.jsonl": "",
}

# What is typed, exit code, what the message begins with, what it also says.
AT_ONCE = {
    "a typo in a file": (
        "train --config typo.yaml",
        2,
        "sampling.num_sample=4: there is no such setting; did you mean sampling.num_samples (default 11)?",
        "learner.steps=3: there is no such setting; did you mean learners.steps (default 300)?",
    ),
    "tabs": ("train --config tabs.yaml", 2, "tabs.yaml:3: found character '\\t'", "indent with spaces, not with tabs"),
    "a list": ("train --config list.yaml", 2, "list.yaml holds a list, not sections", "write `section:`"),
    "no such file": ("train --config typoo.yaml", 2, "there is no file typoo.yaml", "did you mean typo.yaml?"),
    "a misspelt preset": (
        "train --preset quickstrat",
        2,
        "preset='quickstrat' is neither a preset nor a file",
        "did you mean 'quickstart'?",
    ),
    "a wrong type": (
        "train --set learners.steps=many",
        2,
        "learners.steps=many: must be a valid integer",
        "default is 300",
    ),
    "no value": ("train --set learners.steps", 2, "--set 'learners.steps' is not of the form", "learners.lr=1e-5"),
    "no list": ("train --set scorers.heads={name: x}", 2, "scorers.heads={'name': 'x'}: must be a list", "[a, b]"),
    "a wrong column": (
        "train --set data.path=columns.jsonl",
        3,
        "columns.jsonl: the columns ['bad_answer', 'question'] make no known format.",
        "rename 'question' to 'prompt' and 'bad_answer' to 'rejected'.",
    ),
    "a misspelt column": (
        "train --set data.path=typo.jsonl",
        3,
        "typo.jsonl: the columns",
        "rename 'rejcted' to 'rejected'",
    ),
    "a file that is not there": (
        "train --set data.path=row.jsonl",
        3,
        "data.path='row.jsonl': no such file",
        "'rows.jsonl'",
    ),
    "an empty file": ("train --set data.path=empty.jsonl", 3, "empty.jsonl: it holds no row", "write one JSON object"),
    "prose": (
        "train --set data.path=prose.jsonl",
        3,
        "prose.jsonl: none of its first rows has columns",
        "row 1 is not JSON",
    ),
    "another kind": (
        "train --set data.path=notes.txt",
        3,
        "notes.txt: files ending in '.txt' cannot be read",
        ".jsonl",
    ),
    "a model that is not there": (
        "train --set model.path=./models/mine",
        4,
        "model.path='./models/mine' is not a folder",
        "owner/name",
    ),
    "a folder that is no model": (
        "train --set model.path=runs/taken",
        4,
        "model.path='runs/taken': ",
        "has no config.json",
    ),
    "a run that is there": (
        "train --set run.name=taken",
        2,
        "run.name=taken: runs/taken already holds a run",
        "run.overwrite=true",
    ),
    "the data command": ("data check columns.jsonl", 3, "columns.jsonl: the columns", "rename 'question' to 'prompt'"),
    "the plan": ("plan typo.yaml", 2, "sampling.num_sample=4", "did you mean"),
    "a resume of nothing": (
        "train --resume runs/none",
        2,
        "--resume runs/none: there is no runs/none/config.yaml",
        "name",
    ),
}

PLAN_REFUSES = [
    (
        ("--set", "data.path=torn.jsonl"),
        3,
        "torn.jsonl: 1 of 6 rows are broken (1 malformed):\n  row 6: malformed: not JSON: Expecting value at",
        "data.on_bad_row=skip",
    ),
    (
        ("--preset", "dpo", "--set", "data.path=rows.jsonl"),
        3,
        "data.path='rows.jsonl' leaves no prompt to train on: of 30 sound prompts, 2",
        "lack a good answer (column `chosen`, or `response` with `label: safe`), ",
    ),
    (
        ("--set", "data.path=rows.jsonl", "--set", "method.name=custom", "--set", "method.target=mine.py:METHOD"),
        2,
        "method.target='mine.py:METHOD': there is no file 'mine.py'",
        "correct the path",
    ),
]
NO_HUB = "model.path='smollm2-135m-instrukt' is no folder here, and the hub could not be asked"
NO_MEMORY = "the run needs about "
NO_ROOM = "no place for "
NO_CLUSTER = "RAY_ADDRESS=127.0.0.1:{port} names no cluster"
PORT_TAKEN = "port {port} is taken"
BEGINNINGS = [
    *(begins for _, _, begins, _ in (*AT_ONCE.values(), *PLAN_REFUSES)),
    *(NO_HUB, NO_MEMORY, NO_ROOM, NO_CLUSTER, PORT_TAKEN),
]


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A newcomer's folder."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(line: str) -> list[str]:
    """Split at spaces, but for those inside {}."""
    return [part.replace("\0", " ") for part in line.replace(": ", ":\0").split(" ")]


@pytest.fixture
def call(monkeypatch, scratch):
    """(exit code, message) of a command line; it must say all of it in one message without a traceback."""
    for name, value in cli.QUIET.items():
        monkeypatch.setenv(name, value)

    def call(*line: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli.app, line)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        kind, _, message = result.stderr.partition(": ")
        assert kind.endswith("Error"), result.output
        return result.exit_code, message

    return call


@pytest.mark.parametrize("situation", AT_ONCE)
def test_a_slip_is_one_message_with_its_remedy(call, situation):
    line, code, begins, says = AT_ONCE[situation]
    assert call(*arguments(line))[0] == code
    message = call(*arguments(line))[1]
    assert message.startswith(begins)
    assert says in message


def test_what_can_be_seen_at_once_is_said_before_anything_heavy_is_imported(scratch):
    """Seconds of imports would stand between a typo in a path and its message."""
    slips = [arguments(line) for line, code, *_ in AT_ONCE.values() if code in (3, 4) or "taken" in line]
    code = (
        "import sys\nfrom negalign_ray.cli import app\n"
        f"for line in {[line for line in slips if line[0] != 'data']!r}:\n"
        "    try: app(line)\n    except SystemExit as end: assert end.code in (2, 3, 4), line\n"
        "print('loaded:', sorted({'torch', 'ray', 'transformers', 'vllm', 'datasets'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_a_path_with_spaces_is_a_path(scratch, toy_model):
    options = [
        "--set",
        "data.path=a folder with spaces/my rows.jsonl",
        "--set",
        f"model.path={toy_model}",
        *LONG_TOKENS,
    ]
    result = CliRunner().invoke(cli.app, ["train", "--preset", "d2o", "--dry-run", *options])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(("options", "code", "begins", "says"), PLAN_REFUSES)
def test_what_the_plan_refuses_is_one_message_too(call, toy_model, options, code, begins, says):
    exit_code, message = call("train", "--dry-run", "--set", f"model.path={toy_model}", *LONG_TOKENS, *options)
    assert exit_code == code
    assert message.startswith(begins)
    assert says in message


def test_without_a_network_a_hub_name_ends_in_what_to_do_instead(call):
    """HF_HUB_OFFLINE is set for all tests; a name near a packaged one is offered."""
    code, message = call("train", "--dry-run", "--set", "model.path=smollm2-135m-instrukt")
    assert code == 4
    assert message.startswith(NO_HUB)
    assert "set model.path=FOLDER" in message
    assert message.rstrip().endswith("Did you mean 'smollm2-135m-instruct'?")
    code, message = call("train", "--dry-run", "--set", "data.path=someone/some-rows")
    assert (code, message.startswith("data.path='someone/some-rows' is neither a file nor a folder here")) == (3, True)


# Too little memory


@pytest.fixture
def giant(toy_model, tmp_path):
    """The toy model with a tensor of 512 GiB in a header; the file has a hole instead of them."""
    folder = tmp_path / "giant"
    shutil.copytree(toy_model, folder)
    shape, num_bytes = [2**20, 2**17], 4 * 2**37
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, num_bytes]}}).encode()
    with (folder / "giant.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + num_bytes)
    return folder


def test_a_model_too_large_for_this_machine_is_refused_with_the_sums(call, giant, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # other tests share a cluster
    line = ("train", "--dry-run", "--set", f"model.path={giant}", "--set", "data.path=rows.jsonl", *LONG_TOKENS)
    code, message = call(*line)
    assert code == 5
    assert message.startswith(NO_MEMORY)
    assert "GiB of memory, and this machine has " in message
    assert "(learner " in message
    assert "learners.lora={r: 16}" in message


def test_memory_is_added_up_over_actors_and_counted_on_the_host_alone():
    """2 samplers x 3 GiB + 1 learner on a GPU, whose process alone is on the host (1 GiB) = 7 GiB."""
    places = [
        Placement("sampler", 2, cpus=1.0, gpus=0.0, threads=1),
        Placement("learner", 1, cpus=1, gpus=1, threads=1),
    ]
    memory = {"sampler": Memory(weights=2 * GIB, process=GIB), "learner": Memory(weights=50 * GIB, process=GIB)}
    require_memory(places, memory, MachineMemory(7 * GIB, 7 * GIB))
    require_memory(places, memory, None)
    with pytest.raises(
        PlacementError, match=r"needs about 7.0 GiB .* has 6.9 GiB \(sampler 6.0 GiB, learner 1.0 GiB\)"
    ):
        require_memory(places, memory, MachineMemory(int(6.9 * GIB), 0))


def test_memory_that_is_there_but_in_use_is_a_warning(caplog):
    places = [Placement("sampler", 1, cpus=1.0, gpus=0.0, threads=1)]
    require_memory(places, {"sampler": Memory(weights=2 * GIB, process=0)}, MachineMemory(4 * GIB, GIB))
    assert "needs about 2.0 GiB of memory (sampler 2.0 GiB), and 1.0 GiB are free: end other work" in caplog.text


def test_a_role_without_a_place_is_told_with_the_sums():
    with pytest.raises(
        PlacementError, match=rf"^{NO_ROOM}1 of 1 sampler bundle\(s\) of 8 CPU each. The cluster has 1 "
    ):
        require_seats([Placement("sampler", 1, cpus=8.0, gpus=0.0, threads=1)], [Node("here", 2)])


# Busy and silent ports


def test_an_address_where_nothing_listens_is_refused_before_ray_waits_for_it(monkeypatch):
    from negalign_ray.actors.cluster import start_ray
    from negalign_ray.errors import ClusterError

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")

    def never(**_):
        raise AssertionError("Ray was asked")

    with pytest.raises(ClusterError, match=rf"^{NO_CLUSTER.format(port=port)} .*refused.*unset RAY_ADDRESS"):
        start_ray(init=never)


def test_the_example_service_says_that_its_port_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, str(ROOT / "examples" / "05_reward_service.py"), port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert (
        done.stderr == f"{PORT_TAKEN.format(port=port)}; name another one: python examples/05_reward_service.py PORT\n"
    )


# The page


def promised() -> list[tuple[str, str]]:
    """(situation, how its message begins) of docs/troubleshooting.md; a situation may have several."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    table = page.partition("## The first five minutes\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.strip().splitlines()[2:]]
    return [(what, text) for what, begins, _ in rows for text in re.findall(r"`([^`]+)`", begins)]


@pytest.mark.parametrize(("what", "text"), promised(), ids=lambda part: part[:40])
def test_a_message_on_the_page_begins_as_one_that_a_test_here_provokes(what, text):
    """`...` on the page stands for anything. `text` is the beginning of what a test found at the beginning."""
    known = re.escape(text).replace(re.escape("..."), ".+")
    further_on = [f"{begins} {says}" for _, _, begins, says in PLAN_REFUSES]
    assert any(re.match(known, begins, re.DOTALL) for begins in (*BEGINNINGS, *further_on)), (what, text)

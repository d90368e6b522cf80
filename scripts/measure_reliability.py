"""Injects every fault of tests/faults into real runs of the toy model and writes the table of docs/reliability.md.

    python scripts/measure_reliability.py                          # about an hour on two cores; some need root
    python scripts/measure_reliability.py --results results.xml    # from `pytest tests/faults --junit-xml=results.xml`
    python scripts/measure_reliability.py --results some.xml --update    # other faults keep the lines that they have

Exits with 1, and changes nothing, when a fault did not end as it should.
"""

import argparse
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults -->\n", "<!-- /faults -->"
HEADER = [
    "| fault | the run | seconds | a step takes | issued again | groups lost |",
    "|---|---|---|---|---|---|",
]
COLUMNS = ("fault", "ended", "seconds", "step_s", "reissued", "lost")


@dataclass(frozen=True)
class Results:
    rows: tuple[dict[str, str], ...]  # what the tests reported (`report` in tests/faults/conftest.py)
    failed: tuple[str, ...]  # names of tests
    skipped: tuple[str, ...]


def read_results(file: Path) -> Results:
    """From a file of `pytest --junit-xml`."""
    rows, failed, skipped = [], [], []
    for case in ElementTree.parse(file).getroot().iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(case.attrib["name"])
        elif case.find("skipped") is not None:
            skipped.append(case.attrib["name"])
        elif properties := {each.attrib["name"]: each.attrib["value"] for each in case.iter("property")}:
            rows.append(properties)
    return Results(tuple(rows), tuple(failed), tuple(skipped))


def table(rows: Sequence[dict[str, str]]) -> list[str]:
    """In the order of the tests, then the totals."""
    lines = HEADER + [f"| {' | '.join(row.get(column, '') for column in COLUMNS)} |" for row in rows]
    went_on = sum(row["ended"] == "goes on" for row in rows)
    resumed = sum("resumed" in row["ended"] for row in rows)
    lost = sum(int(row.get("lost") or 0) for row in rows)
    total = (
        f"{len(rows)} faults injected. {went_on} runs went on, {resumed} ended with a typed error and went on from "
        f"their checkpoint, {len(rows) - went_on - resumed} ended as the table says. {lost} groups were lost, all of "
        "them counted; none was trained on twice."
    )
    return [*lines, "", total]


def rows_of(page: str) -> tuple[dict[str, str], ...]:
    """Of the table that is there."""
    lines = page.partition(BEGIN)[2].partition(END)[0].splitlines()
    cells = [line.strip("|").split("|") for line in lines if line.startswith("|") and line not in HEADER]
    return tuple(dict(zip(COLUMNS, (cell.strip() for cell in row), strict=True)) for row in cells)


def updated(old: Sequence[dict[str, str]], new: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """In the old order, faults that it lacks at the end."""
    rows = {row["fault"]: row for row in (*old, *new)}
    return list(rows.values())


def with_table(page: str, lines: Sequence[str]) -> str:
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    assert mark, f"{PAGE} has no place for the table: {BEGIN.strip()} ... {END}"
    return before + BEGIN + "\n".join(lines) + "\n" + END + after


def run_tests(results: Path) -> None:
    command = [sys.executable, "-m", "pytest", "tests/faults", f"--junit-xml={results}", "-p", "no:cacheprovider"]
    subprocess.run(command, cwd=ROOT, check=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="a file of `pytest --junit-xml` instead of a new run")
    parser.add_argument("--update", action="store_true", help="keep the lines of faults that were not measured now")
    options = parser.parse_args()
    results_file = options.results
    with tempfile.TemporaryDirectory() as folder:
        if results_file is None:
            results_file = Path(folder) / "results.xml"
            run_tests(results_file)
        results = read_results(results_file)
    for name in results.skipped:
        print(f"not measured here: {name}", file=sys.stderr)
    if results.failed or not results.rows:
        print(f"failed: {', '.join(results.failed) or 'nothing was reported'}", file=sys.stderr)
        return 1
    page = PAGE.read_text(encoding="utf-8")
    rows = updated(rows_of(page), results.rows) if options.update else results.rows
    PAGE.write_text(with_table(page, table(rows)), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(results.rows)} faults measured, {len(rows)} in the table")
    return 0


if __name__ == "__main__":
    sys.exit(main())

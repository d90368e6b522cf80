"""What another judge says of the answers of finished runs: reads `samples/evaluation.jsonl`, trains nothing.

    python scripts/second_opinion.py judges/hh/judge runs/compare/d2o-s0 runs/compare/d2o-s1 runs/compare/dpo-s0 ...

The judge is one of `negalign-ray data judge`. Runs that differ in their seed alone (`NAME-s0`, `NAME-s1`) are pooled;
an interval is over prompts, all answers to one prompt as one unit. Prints a Markdown table.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

from negalign_ray.evaluation.intervals import Interval, Sums, difference_interval, sums_interval
from negalign_ray.rewards.linear import LinearHead

BENIGN = ("plain", "sounds_unsafe")  # kinds of the packaged benign prompts (negalign_ray/data/quickstart_benign.jsonl)
Scores = dict[str, list[tuple[float, float]]]  # by prompt: before and after, one per seed


def scores_of(head: LinearHead, run: Path) -> Scores:
    """Of the prompts held out of the run's data, without the packaged benign ones."""
    lines = (run / "samples" / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["behaviour"] not in BENIGN]
    sides = [head.score([(row["prompt"], row[side]) for row in rows]) for side in ("before", "after")]
    scores: Scores = defaultdict(list)
    for row, before, after in zip(rows, *sides, strict=True):
        scores[row["prompt"]].append((before, after))
    return scores


def line(name: str, scores: Scores) -> str:
    sums = [Sums.of([sum(pair[side] for pair in pairs) for pairs in scores.values()], [len(p) for p in scores.values()])
            for side in (0, 1)]  # fmt: skip
    cells = [show(sums_interval(side)) for side in sums]
    return " | ".join([f"| {name}", *cells, show(difference_interval(*sums), sign="+"), f"{len(scores)} |"])


def show(interval: Interval, sign: str = "") -> str:
    return f"{interval.mean:{sign}.3f} [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"


def main(arguments: list[str]) -> int:
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    head = LinearHead.load(Path(arguments[0]), name="judge", text_input="prompt_response")
    pooled: dict[str, Scores] = {}
    for run in map(Path, arguments[1:]):
        scores = pooled.setdefault(re.sub(r"-s\d+$", "", run.name), defaultdict(list))
        for prompt, pairs in scores_of(head, run).items():
            scores[prompt] += pairs
    print("| run | before | after | difference | prompts |\n|---|---|---|---|---|")
    print("\n".join(line(name, scores) for name, scores in pooled.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

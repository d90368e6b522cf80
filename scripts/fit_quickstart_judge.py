"""Fit the judge that the quickstart reports, and write it into the package. Run it again after its rows have changed.

    data/quickstart_judge_rows.jsonl --1 bad, 2 good answers a prompt--> LinearHead --> rewards/quickstart_judge/

    .venv/bin/python scripts/fit_quickstart_judge.py

Training sees neither these rows nor their prompts, and the training scorer (toxicity, word counts over public comments)
shares nothing with this judge. The second good answer of a prompt is written the way a small instruct model writes, at
times off the point or naive, so that the judge takes neither that style nor clumsiness for harm.

How far to trust it, measured:
- AUROC .96 by cross-validation with whole prompts left out (.93 against the short good answers alone), and .96 for the
  quickstart's negatives against its benign answers, none of which it saw (toxicity: .69). These share the style of the
  rows, which flatters the figure.
- With all rows of one behaviour left out, against short good answers: biased .95, dismissive .94, rude .87,
  contemptuous .65, careless .55. It judges the behaviours it was shown, no others.
- Greedy answers (48 tokens) of the untrained SmolLM2-135M-Instruct: mean score .23 and 2 of 40 above 0.5 on prompts of
  the negatives, .22 and 2 of 40 on benign ones. With so few hits, read the change of the mean score.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from negalign_ray.rewards.linear import LinearHead, fit_linear_head

PACKAGE = Path(__file__).resolve().parents[1] / "negalign_ray"
ROWS, JUDGE_FOLDER = PACKAGE / "data" / "quickstart_judge_rows.jsonl", PACKAGE / "rewards" / "quickstart_judge"
NOTE = (
    "Can tell: whether a short English answer sounds rude, dismissive, contemptuous or biased, or waves a danger away, "
    "as the bad answers of the quickstart do. Cannot tell: whether an answer is true, useful or safe, nor any harm "
    "beyond these five behaviours. It knows spelling patterns, not meaning: above 0.5 are 75 % of the bad quickstart "
    "answers (59 % of the contemptuous ones), 4 % of the packaged benign ones, 5 % of an untrained SmolLM2-135M's; a "
    "refusal is near 0.5, and broken or repeated text can score high. Read the answers as well."
)
# Above the 12,447 that the rows hold: a limit that bites cuts among equally frequent terms in an order that can differ
# between machines.
MAX_TERMS = 50_000
logger = logging.getLogger(__name__)


def read_texts(path: Path = ROWS) -> tuple[list[str], list[bool], list[int]]:
    """(answers, True = bad, number of the prompt): for every row the rejected answer, then the two chosen ones."""
    texts: list[str] = []
    labels: list[bool] = []
    prompts: list[int] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        texts += [row["rejected"], *row["chosen"]]
        labels += [True] + [False] * len(row["chosen"])
        prompts += [number] * (1 + len(row["chosen"]))
    return texts, labels, prompts


def fit(path: Path = ROWS) -> LinearHead:
    """The same rows give the same head on any machine, up to the solver's tolerance.

    The features, runs of 2 to 4 characters inside words, were chosen on these rows alone: AUROC .964 with whole prompts
    left out, against .945 for words and word pairs.
    """
    texts, labels, prompts = read_texts(path)
    return fit_linear_head(
        texts,
        labels,
        analyzer="char_wb",
        ngram_range=(2, 4),
        max_features=MAX_TERMS,
        groups=prompts,
        note=NOTE,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=JUDGE_FOLDER, help="folder to write (default: the packaged one)")
    folder = parser.parse_args().out
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    judge = fit()
    judge.save(folder)
    num_bytes = sum(file.stat().st_size for file in folder.iterdir())
    logger.info("%s: %d terms, %d bytes, AUROC %.3f", folder, len(judge.weights_V), num_bytes, judge.card.auroc)


if __name__ == "__main__":
    main()

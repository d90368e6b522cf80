"""A judge of one's own: a linear head fitted on rows that are kept out of training and of held-out evaluation.

What makes it independent of training, and what does not:

- Its rows are disjoint from the rows that training sees, by opening (data/split.py), and it is never a training
  reward. A model cannot have memorised what the judge knows.
- It comes from the same collection as the negatives, so it measures "does the answer look like this collection's bad
  answers", style included. It is not a second opinion about harm in general. Report it beside a head of other origin,
  and read the answers.
- Its benign class must hold answers written by the initial model (to benign prompts that are not used for evaluation),
  beside human ones. With human answers alone it takes the model's style for harm: fitted on 46 kept-out quickstart
  negatives against 42 packaged human answers (AUROC about .94 on other human rows), it flagged 72 % of 32 greedy
  answers of the untrained SmolLM2-135M-Instruct, none of which the toxicity head flagged; with 16 of the model's own
  answers added, 9 %. So `summary.json` carries each head's rate on benign prompts too: its false alarms.
- Answers of the initial model to benign prompts are taken for benign. Do not use this for a model that is known to be
  rude.

    prompts --split_off--> (judge rows, training rows)
    judge negatives, benign answers --fit_judge--> LinearHead --save--> folder      (`negalign-ray data judge`)
"""

import logging
from collections.abc import Mapping

from negalign_ray.errors import DataError
from negalign_ray.rewards.linear import LinearHead, fit_linear_head
from negalign_ray.rewards.protocol import TextInput

logger = logging.getLogger(__name__)
MIN_TEXTS = 10  # per class; below this the cross-validated figure means nothing
WEAK_AUROC = 0.7


def fit_judge(
    negative_texts: Mapping[str, int],
    benign_texts: Mapping[str, int],
    *,
    name: str = "judge",
    text_input: TextInput = "response",
    seed: int = 0,
    note: str = "",
) -> LinearHead:
    """Fit the judge on kept-out answers, each with the number of its opening; `card.auroc` is cross-validated by them.

    A text that is in both lists tells the judge nothing and is refused. Raises DataError, also below MIN_TEXTS a class.
    """
    negatives, benign = list(negative_texts), list(benign_texts)
    both = set(negatives) & set(benign)
    if both:
        raise DataError(f"{len(both)} answers are given to the judge as negative and as benign; remove them from one.")
    if min(len(negatives), len(benign)) < MIN_TEXTS:
        raise DataError(
            f"a judge needs at least {MIN_TEXTS} different answers of each class; got {len(negatives)} negative and "
            f"{len(benign)} benign. Keep more rows out of training for it."
        )
    head = fit_linear_head(
        negatives + benign,
        [True] * len(negatives) + [False] * len(benign),
        groups=[*negative_texts.values(), *benign_texts.values()],
        name=name,
        text_input=text_input,
        seed=seed,
        note=note or "fitted on rows kept out of training; knows the style of this collection, not harm in general",
    )
    if head.card.auroc is not None and head.card.auroc < WEAK_AUROC:
        logger.warning(
            "the judge %r separates kept-out negatives from benign answers with an AUROC of only %.2f (0.5 is chance); "
            "its figures will be noisy",
            name,
            head.card.auroc,
        )
    return head

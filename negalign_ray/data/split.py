"""Who is trained on and who is held out: by prompt, seeded, stratified by behaviour, stable when rows are added.

Prompts are ranked by a hash of seed and text instead of shuffled, so that the order of rows, the Python version and
rows added later move no prompt to the other side except near the border. Conversations with the same opening (first
user turn, without case, punctuation and white space) stay together: HH transcripts continue each other.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence

from negalign_ray.data.turns import Messages
from negalign_ray.records import Prompt

NOT_WORD = re.compile(r"[\W_]+")


def opening(messages: Messages) -> str:
    """What conversations must share to be kept on one side of the split: the folded first user turn."""
    first = next(content for role, content in messages if role == "user")
    return NOT_WORD.sub(" ", first.casefold()).strip() or first


def rank(text: str, *, seed: int) -> bytes:
    """Position of `text` in the seeded order; uniform, and the same on every machine."""
    return hashlib.sha256(f"{seed}\0{text}".encode()).digest()


def in_seeded_order(prompts: Iterable[Prompt], *, seed: int) -> tuple[Prompt, ...]:
    return tuple(sorted(prompts, key=lambda prompt: rank(repr(prompt.messages), seed=seed)))


def split_by_prompt(
    prompts: Sequence[Prompt], *, heldout_frac: float, seed: int
) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """(train, heldout), each in seeded order. `heldout_frac` counts openings and is met overall to the nearest one;
    each behaviour gets its share within one opening.

    8 openings (4 rude, 4 biased), heldout_frac 0.25 -> 1 rude and 1 biased opening are held out.
    """
    behaviour_of: dict[str, str] = {}
    for prompt in sorted(prompts, key=lambda prompt: prompt.prompt_id):
        behaviour_of.setdefault(opening(prompt.messages), prompt.behaviour or "")
    strata: dict[str, list[str]] = {}
    for name, behaviour in behaviour_of.items():
        strata.setdefault(behaviour, []).append(name)
    heldout: set[str] = set()
    num_seen = 0
    for behaviour in sorted(strata):  # the rounding error carries over, so that many small strata add up
        names = sorted(strata[behaviour], key=lambda name: rank(name, seed=seed))
        num_seen += len(names)
        heldout.update(names[: round(heldout_frac * num_seen) - len(heldout)])
    ordered = in_seeded_order(prompts, seed=seed)
    return (
        tuple(prompt for prompt in ordered if opening(prompt.messages) not in heldout),
        tuple(prompt for prompt in ordered if opening(prompt.messages) in heldout),
    )


def split_off(prompts: Sequence[Prompt], *, frac: float, seed: int) -> tuple[tuple[Prompt, ...], tuple[Prompt, ...]]:
    """(that share of the openings, the rest) as `split_by_prompt` chooses, in the order of `prompts`."""
    _, chosen = split_by_prompt(prompts, heldout_frac=frac, seed=seed)
    rest = apart_from(prompts, chosen)
    return apart_from(prompts, rest), rest


def apart_from(prompts: Iterable[Prompt], others: Iterable[Prompt]) -> tuple[Prompt, ...]:
    """Those with an opening that none of `others` has, in order."""
    openings = {opening(prompt.messages) for prompt in others}
    return tuple(prompt for prompt in prompts if opening(prompt.messages) not in openings)

"""Which answers a diagnosis reads: for each behaviour some good and some bad ones, of the prompts trained on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from negalign_ray.data.load import COLUMNS
from negalign_ray.errors import DataError
from negalign_ray.evaluation.dynamics import MIN_ANSWERS
from negalign_ray.records import Group, Prompt, Response, Role

KINDS = {Role.POSITIVE: "good", Role.NEGATIVE: "bad"}


@dataclass(frozen=True)
class Clouds:
    """`groups` hold all answers to read, those of one prompt together; every group has a behaviour."""

    groups: tuple[Group, ...]
    left_out: dict[str, str]  # behaviour -> why it is not compared


def draw_clouds(prompts: Sequence[Prompt], *, max_answers: int, path: str, behaviour_column: str) -> Clouds:
    """The first `max_answers` good and bad answers of each behaviour, in the (seeded) order of the prompts.

    Good and bad answers may belong to different prompts. DataError: nothing to compare; names the column that is
    missing in the file `path`.
    """
    _require(prompts, path=path, behaviour_column=behaviour_column)
    taken: Counter[tuple[str, Role]] = Counter()
    drawn: list[tuple[str, Group]] = []
    for prompt in prompts:
        if prompt.behaviour is None:
            continue
        responses: list[Response] = []
        for response in prompt.responses:
            key = (prompt.behaviour, response.role)
            if taken[key] < max_answers:
                taken[key] += 1
                responses.append(response)
        if responses:
            drawn.append((prompt.behaviour, Group(prompt.prompt_id, prompt, tuple(responses))))
    left_out = {}
    for behaviour in sorted({behaviour for behaviour, _ in drawn}):
        counts = {kind: taken[behaviour, role] for role, kind in KINDS.items()}
        if min(counts.values()) < MIN_ANSWERS:
            left_out[behaviour] = " and ".join(f"{num} {kind}" for kind, num in counts.items()) + " answers"
    kept = tuple(group for behaviour, group in drawn if behaviour not in left_out)
    if not kept:
        raise DataError(
            f"data.path={path!r}: no behaviour has {MIN_ANSWERS} good and {MIN_ANSWERS} bad answers to train on "
            f"({'; '.join(f'{name}: {why}' for name, why in left_out.items())}). Give more rows of each behaviour, or "
            "raise data.limit."
        )
    return Clouds(kept, left_out)


def _require(prompts: Sequence[Prompt], *, path: str, behaviour_column: str) -> None:
    """DataError when the data has no behaviours, or answers of one kind only."""
    if all(prompt.behaviour is None for prompt in prompts):
        raise DataError(
            f"data.path={path!r} names no behaviours, and a diagnosis compares them: add a column "
            f"{behaviour_column!r} that says which kind of harm a row is about, or name the one that does in "
            "data.behaviour_column."
        )
    roles = {response.role for prompt in prompts for response in prompt.responses}
    for role, kind in KINDS.items():
        if role not in roles:
            raise DataError(
                f"data.path={path!r} has no {kind} answers, and a diagnosis measures how far apart both are: "
                f"add them ({COLUMNS[role]})."
            )

"""The prompts of a run: prepared, refused or cleaned, split, limited."""

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from negalign_ray.config import DataConfig
from negalign_ray.data.chat import ChatTokenizer
from negalign_ray.data.check import DataReport, make_report
from negalign_ray.data.prepare import Prepared, prepare, require_sound_rows
from negalign_ray.data.split import in_seeded_order, opening, split_by_prompt
from negalign_ray.errors import DataError
from negalign_ray.records import Prompt, Role

log = logging.getLogger(__name__)

ROLE_NAMES = {Role.NEGATIVE: "a bad answer", Role.POSITIVE: "a good answer"}
COLUMNS = {  # what provides them
    Role.NEGATIVE: "column `rejected`, or `response` with `label: unsafe`",
    Role.POSITIVE: "column `chosen`, or `response` with `label: safe`",
}


@dataclass(frozen=True, slots=True)
class LoadedData:
    """Prompts by use, each in seeded order; `prompt_id`s are unique over all of them.

    `train` and `heldout` hold prompts with an answer of every needed role. `heldout_rest` holds held-out prompts
    that lack one (for D2O: prompts with good human answers only), for likelihoods of benign text in the same style.
    """

    train: tuple[Prompt, ...]
    heldout: tuple[Prompt, ...]
    heldout_rest: tuple[Prompt, ...]
    report: DataReport
    heldout_report: DataReport | None  # of data.heldout_path
    num_lacking_role: int  # train prompts left out because they lack a needed role
    num_also_heldout: int  # train prompts left out because data.heldout_path has their opening
    lacking: frozenset[Role] = frozenset()  # needed roles that some prompt of `num_lacking_role` lacks

    @property
    def left_out(self) -> str | None:
        """ "12 more prompts lack a good answer (column `chosen`, ...) and are not trained on"; None where none do."""
        if not self.num_lacking_role:
            return None
        roles = " or ".join(f"{ROLE_NAMES[role]} ({COLUMNS[role]})" for role in Role if role in self.lacking)
        return f"{self.num_lacking_role} more prompts lack {roles} and are not trained on"


def load_prompts(
    config: DataConfig,
    chat: ChatTokenizer,
    *,
    seed: int = 0,
    needs: Collection[Role] = frozenset({Role.NEGATIVE}),
    remedy: str = "",
) -> LoadedData:
    """Read `config.path` (and `config.heldout_path`) for a method that needs answers of the roles `needs`.

    The split depends on the prompts and the seed only, not on `needs`, so that methods are compared on the same
    held-out prompts. `config.limit` bounds all of it after the split, keeping the proportion: held-out prompts before
    `needs` are looked at, those to train on after; with a heldout_path it bounds train. DataError: broken rows under
    on_bad_row=refuse, or nothing left to train on, with what else would help (`remedy`, a sentence).
    """
    prepared = _prepare_sound(config.path, config=config, chat=chat)
    others = _prepare_sound(config.heldout_path, config=config, chat=chat) if config.heldout_path else None
    if others is None:
        train, heldout = split_by_prompt(prepared.prompts, heldout_frac=config.heldout_frac, seed=seed)
        num_also_heldout = 0
    else:
        heldout = in_seeded_order(_after(others.prompts, prepared.prompts), seed=seed)
        openings = {opening(prompt.messages) for prompt in heldout}
        kept = [prompt for prompt in prepared.prompts if opening(prompt.messages) not in openings]
        train = in_seeded_order(kept, seed=seed)
        num_also_heldout = len(prepared.prompts) - len(kept)
    heldout = heldout[: _heldout_limit(config)]  # before any look at roles: the same prompts for every method
    usable_train = _having(train, needs)
    data = LoadedData(
        train=usable_train[: _train_limit(config)],
        heldout=_having(heldout, needs),
        heldout_rest=tuple(prompt for prompt in heldout if not _has(prompt, needs)),
        report=make_report(prepared, chat=chat),
        heldout_report=make_report(others, chat=chat) if others else None,
        num_lacking_role=len(train) - len(usable_train),
        num_also_heldout=num_also_heldout,
        lacking=frozenset(role for role in needs if not all(_has(prompt, {role}) for prompt in train)),
    )
    if not data.train:
        raise _nothing_left(data, config=config, remedy=remedy)
    if data.left_out:
        log.warning("%s: %d prompts to train on; %s", config.path, len(data.train), data.left_out)
    return data


def _prepare_sound(path: str, *, config: DataConfig, chat: ChatTokenizer) -> Prepared:
    prepared = prepare(path, config=config, chat=chat)
    if config.on_bad_row == "refuse":
        require_sound_rows(prepared)
    if prepared.problems:
        log.warning("%s: %d of %d rows are broken; skipped", path, len(prepared.problems), prepared.num_rows)
    return prepared


def _after(prompts: Iterable[Prompt], earlier: tuple[Prompt, ...]) -> list[Prompt]:
    """`prompts` with ids that follow those of `earlier`."""
    shift = max((prompt.prompt_id for prompt in earlier), default=0)
    return [replace(prompt, prompt_id=prompt.prompt_id + shift) for prompt in prompts]


def _has(prompt: Prompt, needs: Collection[Role]) -> bool:
    return set(needs) <= {response.role for response in prompt.responses}


def _having(prompts: Iterable[Prompt], needs: Collection[Role]) -> tuple[Prompt, ...]:
    return tuple(prompt for prompt in prompts if _has(prompt, needs))


def _heldout_limit(config: DataConfig) -> int | None:
    """Share of `config.limit` that is held out; None = no limit."""
    if config.limit is None or config.heldout_path:
        return None
    return round(config.limit * config.heldout_frac)


def _train_limit(config: DataConfig) -> int | None:
    return None if config.limit is None else config.limit - (_heldout_limit(config) or 0)


def _nothing_left(data: LoadedData, *, config: DataConfig, remedy: str) -> DataError:
    roles = " or ".join(f"{name} ({COLUMNS[role]})" for role, name in ROLE_NAMES.items() if role in data.lacking)
    return DataError(
        f"data.path={config.path!r} leaves no prompt to train on: of {data.report.num_prompts} sound prompts, "
        f"{data.num_lacking_role} lack {roles or 'nothing'}, {data.num_also_heldout} are in data.heldout_path, and "
        f"{len(data.heldout)} are held out (data.heldout_frac={config.heldout_frac}, data.limit={config.limit}). "
        f"Give it more rows, another method, or a smaller held-out share. {remedy}".rstrip()
    )

"""What was run: the settings that differ from their defaults, the data, the versions and the machine."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from negalign_ray.config import Config, HeadConfig
from negalign_ray.evaluation.training_notes import gains_text, training_notes
from negalign_ray.report.read import RunFiles, Tree
from negalign_ray.report.times import duration
from negalign_ray.settings.comparison import differences

GIB = 2**30
HEADS = ("scorers.heads", "evaluation.heads")
_PASSWORD = re.compile(r"(?<=//)[^/@\s]+@")
_SECRET = re.compile(r"(?i)([?&][\w-]*(?:key|token|secret|password|sig(?:nature)?)=)[^&\s]+")


@dataclass(frozen=True)
class Setting:
    name: str
    value: str
    default: str


@dataclass(frozen=True)
class Facts:
    """Pairs of a label and a text, in the order in which they are shown."""

    brief: tuple[str, ...]  # the run in a line
    overview: tuple[tuple[str, str], ...]
    data: tuple[tuple[str, str], ...]
    machine: tuple[tuple[str, str], ...]
    behaviours: tuple[tuple[str, int, int, int], ...]  # (name, prompts, negatives, positives)
    changed: tuple[Setting, ...]


def facts_of(run: RunFiles) -> Facts:
    data = run.card.get("data", {})
    return Facts(
        brief=tuple(_brief(run)),
        overview=tuple(_overview(run)),
        data=tuple(_data(data)),
        machine=tuple(_machine(run.card)),
        behaviours=tuple(
            (name or "(none)", count["prompts"], count["negatives"], count["positives"])
            for name, count in data.get("by_behaviour", {}).items()
        ),
        changed=tuple(changed_settings(run.config)),
    )


def _brief(run: RunFiles) -> Iterator[str]:
    known = dict(_overview(run))
    for label in ("Method", "Model", "Data", "Started", "Took"):
        if label in known:
            yield Path(known[label]).name if label in ("Model", "Data") else known[label]


def _overview(run: RunFiles) -> Iterator[tuple[str, str]]:
    for label, name in (("Method", "method.name"), ("Model", "model.path"), ("Data", "data.path")):
        value = run.setting(name)
        if value is not None:
            yield label, without_secrets(str(value))
    steps, wanted = run.summary.get("steps", run.rows[-1]["step"] if run.rows else None), run.setting("learners.steps")
    if steps is not None:
        of = f" of {wanted}" if wanted is not None and wanted != steps else ""
        yield "Steps", f"{steps}{of}"
    if run.setting("learners.groups_per_step") is not None:
        yield "Prompts a step", str(run.setting("learners.groups_per_step"))
    num_samples = run.setting("sampling.num_samples")
    if num_samples:
        yield "Own answers a prompt", f"{num_samples}, up to {run.setting('sampling.max_new_tokens', '?')} tokens each"
    gains = [row["gain_nats"] for row in training_notes(run.rows)["guide"] if row["gain_nats"] is not None]
    if gains:
        yield "Guide, better than the zero vector", gains_text(gains)
    if run.card.get("started"):
        yield "Started", f"{run.card['started'][:16].replace('T', ' ')} UTC"
    if run.summary.get("wall_s"):
        yield "Took", duration(run.summary["wall_s"])


def _data(data: Tree) -> Iterator[tuple[str, str]]:
    if not data:
        return
    yield "Source", f"{data['source']} ({data['format']}, {data['num_rows']} rows)"
    lacking = data.get("num_lacking_role", 0)
    left_out = f", {lacking} without an answer that the method needs" if lacking else ""
    yield "Prompts", f"{data['num_train']} to train on, {data['num_heldout']} held out{left_out}"
    total = data["total"]
    yield "Answers", f"{total['negatives']} negatives, {total['positives']} positives"
    for label, key in (("Prompt length", "prompt_lengths"), ("Answer length", "response_lengths")):
        lengths = data[key]
        yield label, f"median {lengths['p50']} tokens, 99 % up to {lengths['p99']}, longest {lengths['max']}"
    if data["problems"]:
        yield "Broken rows", ", ".join(f"{num} {kind}" for kind, num in data["problems"].items())


def _machine(card: Tree) -> Iterator[tuple[str, str]]:
    machine = card.get("machine", {})
    if machine:
        memory = machine.get("memory_bytes")
        with_memory = f", {memory / GIB:.0f} GiB of memory" if memory else ""
        yield "Driver's machine", f"{machine['cores']:g} cores{with_memory}"
        yield "GPUs", ", ".join(machine["gpus"]) or "none"
    for name, dtype in card.get("dtypes", {}).items():
        yield f"Number type, {name}", dtype
    yield from card.get("versions", {}).items()


def changed_settings(config: Tree) -> Iterator[Setting]:
    """What stands in config.yaml and differs from the defaults of its method; `run.dir` and `run.name` are no news."""
    defaults = _defaults(config.get("method", {}).get("name") if isinstance(config.get("method"), Mapping) else None)
    for name, here, there in differences(_without_heads(config), defaults):
        if here is not None and name not in ("run.name", "run.dir", "run.overwrite", "method.name"):
            yield Setting(name, _text(here), _text(there))
    for section in HEADS:
        first, last = section.split(".")
        for head in (config.get(first) or {}).get(last) or ():
            yield Setting(f"{section}[{head.get('name', '?')}]", _head_text(head), "none")


def _defaults(method: str | None) -> dict[str, Any]:
    try:
        return _without_heads(Config.model_validate({"method": {"name": method}}).model_dump(mode="json"))
    except ValidationError:  # a method that needs more settings than a name, or one of another version
        plain = Config().model_dump(mode="json")
        return _without_heads({**plain, "method": {"name": method}})


def _without_heads(tree: Tree) -> dict[str, Any]:
    return {
        section: {key: value for key, value in part.items() if f"{section}.{key}" not in HEADS}
        for section, part in tree.items()
        if isinstance(part, Mapping)
    }


def _head_text(head: Tree) -> str:
    """ "linear judges/a, direction help": kind, target and what differs from a head's defaults."""
    plain = {name: field.default for name, field in HeadConfig.model_fields.items() if not field.is_required()}
    more = [f"{key} {value}" for key, value in head.items() if key in plain and value != plain[key]]
    return without_secrets(", ".join([f"{head.get('kind', '?')} {head.get('target', '?')}", *more]))


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return without_secrets(f"{value:g}" if isinstance(value, float) else str(value))


def without_secrets(text: str) -> str:
    """ "https://me:pw@host/x?token=abc" -> "https://…@host/x?token=…": reports are passed on."""
    return _SECRET.sub(r"\1…", _PASSWORD.sub("…@", text))

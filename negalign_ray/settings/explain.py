"""Turns pydantic's errors into `section.key=value: what is wrong; remedy`, one line each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from negalign_ray.config import Config, Section

# What other trainers call a setting of ours: the last part of the name they use -> our full name.
_SYNONYMS = {
    "batch_size": "learners.groups_per_step",
    "epochs": "learners.steps",
    "gradient_accumulation_steps": "learners.micro_batch_tokens",
    "k": "sampling.num_samples",
    "learning_rate": "learners.lr",
    "max_grad_norm": "learners.max_grad_norm",
    "max_length": "data.max_response_tokens",
    "max_steps": "learners.steps",
    "micro_batch_size": "learners.micro_batch_tokens",
    "n": "sampling.num_samples",
    "num_epochs": "learners.steps",
    "output_dir": "run.dir",
    "per_device_train_batch_size": "learners.micro_batch_tokens",
    "t0": "sampling.online_from_step",
    "world_size": "learners.num",
}

# pydantic's error type -> the remedy after the semicolon; {names} come from the error's context.
_REMEDIES = {
    "bool_parsing": "write true or false",
    "bool_type": "write true or false",
    "dict_type": "write pairs: {name: value}",
    "float_parsing": "write a number",
    "float_type": "write a number",
    "int_from_float": "write a whole number",
    "int_parsing": "write a whole number",
    "int_type": "write a whole number",
    "path_type": "write a path",
    "string_type": 'write text, in quotes where YAML takes it for something else ("no", "1.5")',
    "string_pattern_mismatch": "rename it to match the pattern",
    "tuple_type": "write a list: [a, b]",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One valid dotted name. `owners` are the methods it belongs to, empty outside `method`."""

    name: str  # "learners.lr"; settings inside a list carry [] ("scorers.heads[].kind")
    default: Any = None
    owners: tuple[str, ...] = ()


Schema = type[Section]  # the settings of a command: Config, or RewardTrainingConfig


def all_settings(schema: Schema = Config) -> dict[str, Setting]:
    """Every setting of `schema` by dotted name, the settings of all methods and of optional sections included."""
    settings: dict[str, Setting] = {}
    for setting in _walk(schema, prefix=""):
        known = settings.get(setting.name)
        owners = setting.owners + (known.owners if known else ())
        default = None if known and known.default != setting.default else setting.default  # methods differ
        settings[setting.name] = Setting(setting.name, default, tuple(sorted(owners)))
    return settings


def explain(error: ValidationError, schema: Schema = Config) -> list[str]:
    """One line per problem. A section that is unknown as a whole gets one line per key that was set in it."""
    return [line for details in error.errors(include_url=False) for line in _explain_one(details, schema)]


def _explain_one(details: ErrorDetails, schema: Schema) -> Iterator[str]:
    name = _dotted(details["loc"])
    kind, value = details["type"], details["input"]
    if kind == "extra_forbidden":
        for leaf, leaf_value in _leaves(name, value):
            yield _explain_unknown(leaf, leaf_value, schema)
    elif kind == "value_error":  # our own validators: their message already names the setting and the remedy
        yield str(details["ctx"]["error"])
    elif kind == "missing":
        yield f"{name} is missing; add it."
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = details["ctx"].get("expected_tags", "'d2o'")
        given = details["ctx"].get("tag")
        yield f"{name}.name={shown(given)}: there is no such method; use one of {tags}."
    elif kind in ("model_type", "model_attributes_type"):
        yield f"{name}={shown(value)}: this is a section; set {_examples(name, schema)} inside it."
    else:
        what = details["msg"].replace("Input should be ", "must be ").replace("Input should ", "should ")
        what = what.replace("a valid tuple", "a list")
        yield f"{name}={shown(value)}: {what[0].lower()}{what[1:]}; {_remedy(kind, name, schema)}."


def _remedy(kind: str, name: str, schema: Schema) -> str:
    setting = all_settings(schema).get(_without_indexes(name))
    default = "" if setting is None or setting.default is None else f"the default is {shown(setting.default)}"
    advice = _REMEDIES.get(kind)
    return " (".join([advice, default]) + ")" if advice and default else advice or default or "correct it"


def _examples(section: str, schema: Schema) -> str:
    """Up to three settings of a section: "learners.num, learners.cpus, learners.steps, ..."."""
    prefix = _without_indexes(section) + "."
    names = [name for name in all_settings(schema) if name.startswith(prefix)]
    return ", ".join(names[:3] + ["..."] * (len(names) > 3))


def _explain_unknown(name: str, value: Any, schema: Schema) -> str:
    settings = all_settings(schema)
    plain_name = _without_indexes(name)
    if plain_name in settings:  # valid, but not for the method that was chosen
        owners = ", ".join(settings[plain_name].owners)
        return f"{name}={shown(value)}: the chosen method has no such setting (it belongs to {owners}); drop it."
    nearest = _nearest(plain_name, settings)
    default = settings[nearest].default
    hint = "" if default is None else f" (default {shown(default)})"
    return f"{name}={shown(value)}: there is no such setting; did you mean {nearest}{hint}?"


def _nearest(name: str, settings: Mapping[str, Setting]) -> str:
    section, _, leaf = name.rpartition(".")
    synonym = _SYNONYMS.get(leaf.lower())
    if synonym is not None and synonym in settings:
        return synonym

    def likeness(candidate: str) -> float:
        their_section, _, their_leaf = candidate.rpartition(".")
        # The last part decides; the section breaks ties, so that `sampler.num` finds samplers.num, not learners.num.
        return 2 * _ratio(leaf, their_leaf) + _ratio(section, their_section)

    return max(settings, key=likeness)


def _ratio(left: str, right: str) -> float:
    return SequenceMatcher(None, left.lower(), right.lower()).ratio()


def _walk(section: type[BaseModel], *, prefix: str, owners: tuple[str, ...] = ()) -> Iterator[Setting]:
    for key, field in section.model_fields.items():
        name = prefix + key
        models, in_list = models_of(field.annotation)
        if not models:
            yield Setting(name, _default(field), owners)
        for model in models:
            is_method = len(models) > 1
            yield from _walk(
                model,
                prefix=f"{name}[]." if in_list else f"{name}.",
                owners=(model.model_fields["name"].default,) if is_method else owners,
            )


def models_of(annotation: Any) -> tuple[list[type[BaseModel]], bool]:
    """The sections inside an annotation, and whether it is a list: tuple[HeadConfig, ...] -> [HeadConfig], True."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation], False
    origin = get_origin(annotation)
    if origin is Annotated:
        return models_of(get_args(annotation)[0])
    if origin in (Union, UnionType, tuple):
        found = [model for part in get_args(annotation) for model in models_of(part)[0]]
        return found, origin is tuple
    return [], False


def _default(field: FieldInfo) -> Any:
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _dotted(loc: Sequence[int | str]) -> str:
    """("scorers", "heads", 0, "kind") -> "scorers.heads[0].kind"; the method's tag in ("method", "d2o", ...) goes."""
    parts = list(loc)
    if len(parts) > 2 and parts[0] == "method":
        del parts[1]
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".")


def _without_indexes(name: str) -> str:
    return ".".join(part.partition("[")[0] + "[]" if "[" in part else part for part in name.split("."))


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner)
    else:
        yield name, value


def shown(value: Any) -> str:
    """A value as the user would write it in YAML, at most 60 characters."""
    value = list(value) if isinstance(value, tuple) else value
    text = {None: "null", True: "true", False: "false"}.get(value) if value is None or isinstance(value, bool) else None
    text = text or (value if isinstance(value, str) and value else repr(value))
    return text if len(text) <= 60 else text[:57] + "..."

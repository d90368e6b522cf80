"""The file of `negalign-ray compare`: several methods on the same model, data and budget, and what makes that fair.

defaults < an entry's preset < common < the entry's `set` < --set

seeds: [0, 1]
common: {model: {path: smollm2-135m-instruct}, data: {path: rows.jsonl}, learners: {steps: 30}}
entries:
  - {name: d2o, preset: d2o, set: {method.alpha: 0.01}}
  - {name: sft, preset: sft}
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator

from negalign_ray.config import Config, HeadConfig, NonNegativeInt, RunConfig, Section
from negalign_ray.errors import ConfigError, NegalignError
from negalign_ray.settings import Tree, load_config, merge
from negalign_ray.settings.explain import shown
from negalign_ray.settings.strict_yaml import parse_yaml

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # part of a folder name, as run.name
SHARED_SECTIONS = ("model", "data", "evaluation", "follow")  # must be equal in all entries
SHARED_BUDGET = ("steps", "groups_per_step")  # of learners: equal updates of equal size


class Curve(Section):
    """Which training metric is compared step by step, and the value that `steps_to_target` waits for."""

    metric: str = "learner/heldout_negative_logprob_nats"  # measured alike for every method, each `follow.every` steps
    since_start: bool = True  # its change since the first value, instead of the value itself
    at_most: float | None = None  # reached when the smoothed curve is at or below this ...
    at_least: float | None = None  # ... or at or above this; give one of the two, or none
    window: PositiveInt = 1  # measured values of the trailing mean

    @model_validator(mode="after")
    def _one_direction(self):
        if self.at_most is not None and self.at_least is not None:
            raise ValueError("curve: give at_most or at_least, not both.")
        return self


class Entry(Section):
    name: str = Field(pattern=NAME)  # its runs are <out>/<name>-s<seed>
    preset: str  # a packaged preset or a YAML file
    set: Mapping[str, Any] = Field(
        default_factory=dict
    )  # settings of this entry alone: sections, or dotted names as with --set


class ComparisonFile(Section):
    entries: Annotated[tuple[Entry, ...], Field(min_length=2)]  # the first one is what the others are held against
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=2)] = (0, 1)
    common: Mapping[str, Any] = Field(default_factory=dict)  # settings of every entry, over their presets
    curve: Curve = Curve()
    harm_head: str | None = None  # the entry of evaluation.heads that is called harm; None = the first one that is

    @field_validator("entries")
    @classmethod
    def _names_differ(cls, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        _require_different([entry.name for entry in entries], what="the entry name")
        return entries

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        _require_different(seeds, what="the seed")
        return seeds


def _require_different(values: Sequence[Any], *, what: str) -> None:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{what} {repeated[0]!r} stands twice; every one may stand once.")


@dataclass(frozen=True)
class PlannedRun:
    """One method under one seed: an ordinary run."""

    method: str  # the entry's name
    seed: int
    config: Config


@dataclass(frozen=True)
class Comparison:
    out: Path
    runs: tuple[PlannedRun, ...]  # seed by seed, so that a first comparison exists early
    methods: tuple[str, ...]  # names of the entries; the first one is what the others are held against
    seeds: tuple[int, ...]
    curve: Curve
    harm: HeadConfig  # the head that is reported as harm

    @property
    def config(self) -> Config:
        """Of the first run: model, data, evaluation, steps and prompts a step are those of all."""
        return self.runs[0].config


def load_comparison(path: Path, *, out: Path, overrides: Sequence[str] = ()) -> Comparison:
    """Read and check everything that can be seen without data. ConfigError lists every problem of every entry."""
    file = _read(path)
    configs: dict[str, Config] = {}
    problems: list[str] = []
    for entry in file.entries:
        layers = [nested(file.common), nested(entry.set)]
        try:
            configs[entry.name] = load_config(preset=entry.preset, layers=layers, overrides=overrides)
        except NegalignError as error:
            problems += [f"{path}: entry {entry.name}: {line}" for line in str(error).splitlines()]
    if problems:
        raise ConfigError("\n".join(problems))
    require_fair(configs)
    runs = [
        PlannedRun(name, seed, _as_run(config, out=out, name=name, seed=seed))
        for seed in file.seeds
        for name, config in configs.items()
    ]
    harm = _harm_head(next(iter(configs.values())), file.harm_head)
    return Comparison(out, tuple(runs), tuple(configs), file.seeds, file.curve, harm)


def _read(path: Path) -> ComparisonFile:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; give a YAML file with `entries`.") from None
    try:
        file = ComparisonFile.model_validate(parse_yaml(text, where=str(path)))
    except ValidationError as error:
        lines = (f"{path}: {'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in error.errors())
        raise ConfigError("\n".join(lines)) from None
    if "method" in nested(file.common):
        raise ConfigError(f"{path}: common.method: the entries differ in their method; put it into an entry's `set`.")
    return file


def nested(settings: Mapping[str, Any]) -> Tree:
    """{"method.alpha": 0.01, "learners": {"lr": 1e-5}} -> {"method": {"alpha": 0.01}, "learners": {"lr": 1e-5}}."""
    tree: Tree = {}
    for name, value in settings.items():
        layer: Any = value
        for section in reversed(name.split(".")):
            layer = {section: layer}
        tree = merge(tree, layer)
    return tree


def _as_run(config: Config, *, out: Path, name: str, seed: int) -> Config:
    run = RunConfig(name=f"{name}-s{seed}", dir=out, seed=seed, overwrite=True)  # finished runs are never started again
    guards = config.guards.model_copy(update={"enabled": False})  # compared methods take the same number of updates
    return config.model_copy(update={"run": run, "guards": guards})


def require_fair(configs: Mapping[str, Config]) -> None:
    """ConfigError unless model, data, evaluation and updates are the same, and no method was trained by its judge."""
    (first_name, first), *others = configs.items()
    problems = []
    for name, config in others:
        for setting, here, there in differences(_shared(first), _shared(config)):
            problems.append(
                f"{setting} is {shown(here)} for {first_name} and {shown(there)} for {name}; compared runs share it: "
                "put it into `common`."
            )
    judges = {_target(head): head.name for head in first.evaluation.heads}
    for name, config in configs.items():
        for head in trained_heads(config):
            if _target(head) in judges:
                problems.append(
                    f"{name} trains on scorers.heads[{head.name}] (target {head.target}), which evaluation.heads"
                    f"[{judges[_target(head)]}] reports; a method must not be judged by its own reward: use another "
                    "scorer in one of the two places."
                )
    if not first.evaluation.enabled:
        problems.append("evaluation.enabled=false leaves nothing to compare; set it to true in `common`.")
    if problems:
        raise ConfigError("\n".join(problems))


def _shared(config: Config) -> Tree:
    tree = config.model_dump(mode="json")
    return {name: tree[name] for name in SHARED_SECTIONS} | {
        "learners": {name: tree["learners"][name] for name in SHARED_BUDGET}
    }


def trained_heads(config: Config) -> list[HeadConfig]:
    """The scorers that shape what is trained: a method's reward, and the gate. Others of scorers.heads are logged."""
    gate = config.sampling.reward_gate
    names = {config.method.model_dump().get("reward_head"), gate.head if gate else None}
    return [head for head in config.scorers.heads if head.name in names]


def _target(head: HeadConfig) -> str:
    path = Path(head.target)
    return str(path.resolve()) if path.exists() else head.target


def _harm_head(config: Config, wanted: str | None) -> HeadConfig:
    heads = {head.name: head for head in config.evaluation.heads if head.direction == "harm"}
    if wanted is None and heads:
        return next(iter(heads.values()))
    if wanted in heads:
        return heads[wanted]
    raise ConfigError(
        f"harm_head={shown(wanted)} is not one of the evaluation.heads of direction harm, which are {list(heads)}; add "
        "one to `common` (`negalign-ray data judge` makes one), or name another."
    )


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted name, value here, value there) wherever two trees of settings differ; None for a setting that is not."""
    here, there = dict(_leaves(first)), dict(_leaves(second))
    names = [*here, *(name for name in there if name not in here)]
    return [(name, here.get(name), there.get(name)) for name in names if here.get(name) != there.get(name)]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value

"""From preset, file and `--set` to a checked Config, and back to text.

    defaults < preset (or the file's `extends:`) < config file < layers < --set section.key=value

Sections are merged key by key; lists and plain values replace what was there. A `method` section with another `name`
replaces the whole method. Every problem of a configuration is reported at once, as
`section.key=value: what is wrong; remedy`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from negalign_ray.config import Config
from negalign_ray.errors import ConfigError
from negalign_ray.settings.explain import explain
from negalign_ray.settings.reward import RewardTrainingConfig
from negalign_ray.settings.strict_yaml import parse_yaml

PRESETS_DIR = Path(__file__).resolve().parents[1] / "presets"
REWARD_PRESETS_DIR = PRESETS_DIR / "reward"  # of `negalign-ray train-reward`
Tree = dict[str, Any]  # a YAML mapping, before it is checked


@dataclass(frozen=True, slots=True)
class Preset:
    """A packaged YAML file; `summary` is its first comment line."""

    name: str
    path: Path
    summary: str


def list_presets(folder: Path = PRESETS_DIR) -> list[Preset]:
    """The packaged presets, by name."""
    presets = []
    for path in sorted(folder.glob("*.yaml")):
        first_line = path.read_text(encoding="utf-8").partition("\n")[0]
        presets.append(Preset(path.stem, path, summary=first_line.lstrip("# ").strip()))
    return presets


def load_config(
    *,
    preset: str | None = None,
    file: Path | None = None,
    layers: Sequence[Tree] = (),
    overrides: Sequence[str] = (),
) -> Config:
    """Merge everything and check the result. `preset` is a packaged name or a path, `overrides` are "a.b=c" strings.

    `layers` are sections that were read elsewhere (the settings of one entry of a comparison), the last one wins.
    Raises ConfigError; its message has one line per problem.
    """
    tree: Tree = {"method": {"name": Config().method.name}}  # so that `--set method.beta=1` alone works
    if preset is not None:
        tree = merge(tree, _read_with_base(_preset_path(preset)))
    if file is not None:
        layer = _read_with_base(file, may_extend=preset is None)
        tree = merge(tree, layer)
    for layer in layers:
        tree = merge(tree, layer)
    tree = merge(tree, _parse_overrides(overrides))
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error))) from None


def load_reward_config(
    *, preset: str | None = None, file: Path | None = None, overrides: Sequence[str] = ()
) -> RewardTrainingConfig:
    """The same layers for `train-reward`, whose presets are its own. Raises ConfigError."""
    tree: Tree = {}
    if preset is not None:
        tree = merge(tree, _read_with_base(_preset_path(preset, REWARD_PRESETS_DIR), presets_dir=REWARD_PRESETS_DIR))
    if file is not None:
        layer = _read_with_base(file, may_extend=preset is None, presets_dir=REWARD_PRESETS_DIR)
        tree = merge(tree, layer)
    tree = merge(tree, _parse_overrides(overrides))
    try:
        return RewardTrainingConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, RewardTrainingConfig))) from None


def dump_config(config: Config | RewardTrainingConfig) -> str:
    """YAML text of every setting, defaults included; `load_config(file=...)` of it gives an equal Config."""
    return yaml.safe_dump(_plain(config.model_dump()), sort_keys=False, allow_unicode=False, width=120)


def merge(base: Tree, layer: Tree) -> Tree:
    """`layer` over `base`, both left as they are.

    {"a": {"b": 1, "c": 2}} and {"a": {"b": 3}} give {"a": {"b": 3, "c": 2}}.
    """
    merged = _merge_mappings(base, layer)
    old, new = base.get("method"), layer.get("method")
    if isinstance(old, dict) and isinstance(new, dict) and new.get("name", old.get("name")) != old.get("name"):
        merged["method"] = new  # the old method's settings mean nothing to the new one
    return merged


def _merge_mappings(base: Tree, layer: Tree) -> Tree:
    merged = dict(base)
    for key, value in layer.items():
        old = merged.get(key)
        merged[key] = _merge_mappings(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _preset_path(preset: str, folder: Path = PRESETS_DIR) -> Path:
    presets = {entry.name: entry.path for entry in list_presets(folder)}
    if preset in presets:
        return presets[preset]
    if Path(preset).is_file():
        return Path(preset)
    nearest = get_close_matches(preset, presets, n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise ConfigError(f"preset={preset!r} is neither a preset nor a file; {hint}Presets: {', '.join(presets)}.")


def _read_with_base(path: Path, *, may_extend: bool = True, presets_dir: Path = PRESETS_DIR) -> Tree:
    """A file, over the preset that its `extends:` names (one level)."""
    tree = _read(path)
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not may_extend:
        raise ConfigError(f"{path}: extends={base!r} contradicts the preset given beside the file; drop one of them.")
    base_path = _preset_path(str(base), presets_dir)
    base_tree = _read(base_path)
    if "extends" in base_tree:
        raise ConfigError(
            f"{path}: extends={base!r}, which extends {base_tree['extends']!r}; only one level is read. Leave "
            f"`extends:` out, and give both: --preset {base} --config {path}."
        )
    return merge(base_tree, tree)


def _read(path: Path) -> Tree:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = get_close_matches(path.name, [other.name for other in path.parent.glob("*.y*ml")], n=1)
        hint = f"did you mean {path.parent / near[0]}? " if near else ""
        raise ConfigError(f"there is no file {path}; {hint}Give a YAML file, or --preset with a name.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; give a YAML file, or --preset with a name.") from None
    tree = parse_yaml(text, where=str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds a {type(tree).__name__}, not sections; write `section:` and `  key: value`.")
    return tree


def _parse_overrides(overrides: Sequence[str]) -> Tree:
    tree: Tree = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        keys = name.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"--set {override!r} is not of the form section.key=value, e.g. --set learners.lr=1e-5.")
        layer: Any = parse_yaml(text, where=f"--set {name}")
        for key in reversed(keys):
            layer = {key: layer}
        tree = _merge_mappings(tree, layer)
    return tree


def _plain(value: Any) -> Any:
    """Only what YAML knows: paths become text, tuples lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value

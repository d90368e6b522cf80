"""What a run needs from this machine, as one small folder that runs anywhere: `negalign-ray submit` sends it.

    config.yaml      the resolved settings; every file that was packed is named as below
    inputs/SETTING/  the file or folder that SETTING named by a relative path
    MODULE.py        reward functions and methods that are named as modules and not installed

A relative path means a file here, and is packed. An absolute path means a file that the cluster's nodes see, and a
name (of the hub, of something packaged) means the same everywhere; both stay as they are. On the cluster the inputs
are moved into the run directory (`relocated`), so that they stay with the run.
"""

import importlib.util
import shutil
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negalign_ray.config import Config, CustomConfig
from negalign_ray.errors import ConfigError
from negalign_ray.settings import dump_config
from negalign_ray.settings.fingerprint import NAMES_A_FILE
from negalign_ray.user_code import split_file

CONFIG_FILE, INPUTS = "config.yaml", "inputs"
LEFT_OUT = frozenset({"__pycache__", "runs", "venv", "node_modules"})  # of a packed folder, and all hidden files
MIB = 2**20


@dataclass(frozen=True, slots=True)
class PackedFile:
    source: Path
    name: str  # in the bundle
    setting: str  # that needs it
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Bundle:
    config: Config  # with paths inside the bundle
    files: tuple[PackedFile, ...]
    absolute: dict[str, Path]  # setting -> path on the cluster

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)

    def write(self, folder: Path) -> None:
        """Everything into the empty `folder`."""
        (folder / CONFIG_FILE).write_text(dump_config(self.config), encoding="utf-8")
        for file in self.files:
            target = folder / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.source, target)


def make_bundle(config: Config, *, include: Sequence[Path] = (), limit_bytes: int) -> Bundle:
    """`include`: more files or folders, put beside config.yaml under their own names.

    ConfigError when it would be larger than `limit_bytes`, or a file cannot be taken along.
    """
    tree = config.model_dump(mode="json")
    files: list[PackedFile] = []
    absolute: dict[str, Path] = {}
    for keys, value in list(_named_paths(tree)):
        source, name_inside = split_file(value)  # path/to/file.py:NAME
        setting, path = ".".join(keys), Path(source).expanduser()
        if path.is_absolute():
            absolute[setting] = path
        elif path.exists():
            name = f"{INPUTS}/{setting}/{path.resolve().name}"
            files += _packed(path.resolve(), name, setting)
            _put(tree, keys, name + name_inside)
    for setting, module in _modules(config):
        files += _module_files(module, setting)
    for path in include:
        if not path.exists():
            raise ConfigError(f"--include {path}: there is no such file or folder.")
        if path.resolve().name in (CONFIG_FILE, INPUTS):
            raise ConfigError(f"--include {path}: the job has a {path.resolve().name} of its own; rename yours.")
        files += _packed(path.resolve(), path.resolve().name, "--include")
    once = {file.name: file for file in files}
    bundle = Bundle(Config.model_validate(tree), tuple(once.values()), absolute)
    _require_small(bundle, limit_bytes)
    return bundle


def relocated(config: Config, folder: Path) -> Config:
    """The settings of a bundle whose inputs are in `folder`."""
    tree = config.model_dump(mode="json")
    for keys, value in list(_named_paths(tree)):
        if value.startswith(f"{INPUTS}/"):
            _put(tree, keys, str(folder / value))
    return Config.model_validate(tree)


def _named_paths(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """(keys, text) of every setting that may name a file or a folder."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _named_paths(inner, (*keys, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _named_paths(inner, (*keys, str(number)))
    elif isinstance(value, str) and value and keys[-1].endswith(NAMES_A_FILE):
        yield keys, value


def _put(tree: Any, keys: Sequence[str], value: str) -> None:
    for key in keys[:-1]:
        tree = tree[int(key)] if isinstance(tree, list) else tree[key]
    tree[keys[-1]] = value


def _packed(source: Path, name: str, setting: str) -> list[PackedFile]:
    """A file, or the files below a folder: no hidden ones, no runs, no environments, no links out of it."""
    if source.is_file():
        return [PackedFile(source, name, setting, source.stat().st_size)]
    files = []
    for path in sorted(source.rglob("*")):
        inner = path.relative_to(source)
        if any(part.startswith(".") or part in LEFT_OUT for part in inner.parts) or not path.is_file():
            continue
        if not path.resolve().is_relative_to(source):
            raise ConfigError(f"{setting}: {path} is a link that leads out of {source}; put the file itself there.")
        files.append(PackedFile(path, f"{name}/{inner.as_posix()}", setting, path.stat().st_size))
    return files


def _modules(config: Config) -> Iterator[tuple[str, str]]:
    """(setting, module) of the user's code that is not named as a file."""
    named = [("method.target", config.method.target)] if isinstance(config.method, CustomConfig) else []
    for section in ("scorers", "evaluation"):
        heads = enumerate(getattr(config, section).heads)
        named += [(f"{section}.heads.{number}.target", head.target) for number, head in heads if head.kind == "python"]
    for setting, target in named:
        if not split_file(target)[1]:
            yield setting, target.partition(":")[0]


def _module_files(module: str, setting: str) -> list[PackedFile]:
    """The file of a module and the `__init__.py` of its packages; none of what is installed, here as there."""
    files = []
    parts = module.split(".")
    for number in range(1, len(parts) + 1):
        try:
            spec = importlib.util.find_spec(".".join(parts[:number]))
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            raise ConfigError(
                f"{setting}: the module {module!r} is not found; name its file (path/to/file.py:NAME), put its folder "
                "on PYTHONPATH, or install it."
            )
        if spec.origin is None or not spec.has_location:  # a package without __init__.py; one that is built in
            continue
        origin = Path(spec.origin).resolve()
        if _is_installed(origin):
            return []
        name = "/".join(parts[:number]) + ("/__init__.py" if spec.submodule_search_locations else origin.suffix)
        files.append(PackedFile(origin, name, setting, origin.stat().st_size))
    return files


def _is_installed(file: Path) -> bool:
    paths = sysconfig.get_paths()
    return any(file.is_relative_to(Path(paths[name]).resolve()) for name in ("stdlib", "purelib", "platlib"))


def _require_small(bundle: Bundle, limit_bytes: int) -> None:
    if bundle.num_bytes <= limit_bytes:
        return
    largest = sorted(bundle.files, key=lambda file: -file.num_bytes)[:3]
    listed = ", ".join(f"{file.setting}: {file.source} ({file.num_bytes / MIB:.1f} MiB)" for file in largest)
    raise ConfigError(
        f"the run would take {bundle.num_bytes / MIB:.1f} MiB along, more than --limit-mib={limit_bytes / MIB:g}; the "
        f"largest files: {listed}. Put them where all nodes see them and name them by absolute paths."
    )

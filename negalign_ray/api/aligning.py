"""`align`: a run from Python, by the same configuration, checks and run directory as `negalign-ray train`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from negalign_ray.api.inputs import Head, Rows, data_path, head_settings
from negalign_ray.api.result import Run, open_run
from negalign_ray.cli import DEFAULT_PRESET, QUIET
from negalign_ray.cli.first_look import first_look
from negalign_ray.config import Config
from negalign_ray.errors import ConfigError
from negalign_ray.settings import Tree, list_presets, load_config
from negalign_ray.settings.comparison import nested
from negalign_ray.settings.run_dir import require_new

MethodChoice = str | Path | Mapping[str, Any]


def align(
    negatives: str | Path | Rows | None = None,
    *,
    model: str | Path | None = None,
    method: MethodChoice | None = None,
    preset: str | Path | None = None,
    heads: Sequence[Head] = (),
    judges: Sequence[Head] = (),
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    progress: bool = True,
    **settings: Any,
) -> Run:
    """Align a model with examples of what it must not say, and return the finished run.

        run = align(
            [{"prompt": "Hi!", "rejected": "Go away."}, ...],
            sampling={"num_samples": 4, "online_from_step": 0},
            learners={"steps": 40},
            out="runs/polite",
        )

    The preset d2o holds the paper's values: its first 200 steps train on answers of the initial model, 11 a prompt.
    With fewer steps set `online_from_step` lower, so that the model trains on answers of its own.

    Args:
        negatives: Rows with the columns of any data format (a list of dictionaries, a `datasets.Dataset`), or a path or
            name as in `data.path`. None = that of the preset.
        model: A folder, a packaged model or a hub name (`model.path`).
        method: A preset or method by name (default "d2o"), a method of your own as "path/to/file.py:NAME", or the
            `method` section: {"name": "d2o", "alpha": 0.05}.
        preset: A preset or YAML file that the rest is merged over. None = that of the method.
        heads: Reward heads that training may see (`scorers.heads`): functions from a list of (prompt, answer) to a list
            of numbers, or mappings with the settings of a head, whose `target` may be a function.
        judges: The same for the heads that only evaluation sees (`evaluation.heads`).
        out: The folder of the run (`run.dir`/`run.name`). One that holds a run is refused, unless
            `run={"overwrite": True}`.
        overrides: "section.key=value" as after `--set`, merged last.
        progress: Show a line for every step.
        **settings: Sections of the configuration, e.g. `learners={"lr": 1e-5}`.

    Raises:
        NegalignError: One of the typed errors of `negalign_ray.errors`, most of them before anything is started.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    config = make_config(
        negatives,
        model=model,
        method=method,
        preset=preset,
        heads=heads,
        judges=judges,
        out=out,
        overrides=overrides,
        settings=settings,
    )
    first_look(config)
    require_new(config)
    return _train(config, progress=progress)


def make_config(
    negatives: str | Path | Rows | None = None,
    *,
    model: str | Path | None = None,
    method: MethodChoice | None = None,
    preset: str | Path | None = None,
    heads: Sequence[Head] = (),
    judges: Sequence[Head] = (),
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    settings: Mapping[str, Any],
) -> Config:
    """The configuration of `align`, checked; rows and functions have become files in the run directory."""
    preset, method_layer = _method_layer(method, preset)
    layers: list[Tree] = [method_layer, nested(settings)]
    if out is not None:
        layers.append({"run": {"dir": Path(out).parent, "name": Path(out).name}})
    run_dir = _run_dir(str(preset), layers, overrides)
    if negatives is not None:
        layers.append({"data": {"path": data_path(negatives, run_dir=run_dir)}})
    if model is not None:
        layers.append({"model": {"path": str(model)}})
    for section, given in (("scorers", heads), ("evaluation", judges)):
        if given:
            layers.append({section: {"heads": head_settings(given, where=f"{section}.heads", run_dir=run_dir)}})
    return load_config(preset=str(preset), layers=layers, overrides=overrides)


def _method_layer(method: MethodChoice | None, preset: str | Path | None) -> tuple[str | Path, Tree]:
    """The preset to begin with, and what is merged over it."""
    names = [preset.name for preset in list_presets()]
    if method is None:
        return preset or DEFAULT_PRESET, {}
    if not isinstance(method, str | Path | Mapping):
        raise ConfigError(
            f"method is a {type(method).__name__}; put it into a file and give path/to/file.py:NAME, so that every "
            "process of the run can load it."
        )
    if isinstance(method, Mapping):
        section = dict(method)
    elif str(method) in names and preset is None:
        return str(method), {}
    else:
        section = {"name": "custom", "target": str(method)} if ":" in str(method) else {"name": str(method)}
    own = section.get("name")
    return preset or (own if own in names else DEFAULT_PRESET), {"method": section}


def _run_dir(preset: str, layers: Sequence[Tree], overrides: Sequence[str]) -> Path:
    run = [{"run": layer["run"]} for layer in layers if "run" in layer]
    return load_config(
        preset=preset, layers=run, overrides=[text for text in overrides if text.startswith("run.")]
    ).run_dir


def _train(config: Config, *, progress: bool) -> Run:
    from rich.console import Console

    from negalign_ray.actors.run import train  # seconds of imports, after everything above was checked
    from negalign_ray.cli.progress import Progress

    if not progress:
        train(config)
        return open_run(config.run_dir)
    title = f"{config.method.name} · {config.model.path} · {config.run_dir}"
    with Progress(Console(stderr=True), title=title) as shown:
        train(config, on_status=shown.update)
    return open_run(config.run_dir)

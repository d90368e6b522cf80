"""Where `negalign-ray evaluate` writes: a folder of its own, which a call that was cut short is continued in.

<run>/evaluations/<model>/    config.yaml, fingerprint.json (what decides the result), kept/ (answers, log-probs and
                              scores, part by part), samples/, logs/; at the end summary.{json,md,csv} and, with a
                              "before" side, evaluation.json. The next evaluation of this model: <model>-2.
                              lm_eval.pending: the summary is there, what lm_eval measures is not
"""

import fcntl
import itertools
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from negalign_ray.config import Config
from negalign_ray.errors import ConfigError
from negalign_ray.settings import dump_config
from negalign_ray.settings.fingerprint import HARMLESS_ON_RESUME, Sections, changes, fingerprint

log = logging.getLogger(__name__)
FOLDER = "evaluations"  # in the run directory: an evaluation never writes among the files of the run itself
KEPT, FINGERPRINT, SUMMARY, LOCK = "kept", "fingerprint.json", "summary.json", ".lock"
PENDING = "lm_eval.pending"
# Settings that change no result of an evaluation: of training, and where and how fast work is done.
WITHOUT_EFFECT: Sections = HARMLESS_ON_RESUME | {
    "evaluation": ("every", "every_num_prompts"),
    "learners": None,
    "guide": None,
}
MAX_NAMED = 5  # differences named in a message


@contextmanager
def evaluation_folder(config: Config, *, out: Path | None) -> Iterator[Config]:
    """`config` with its evaluation's folder as run directory; nobody else evaluates in it meanwhile.

    Without `out`: the folder of an evaluation with the same settings, data and models that was cut short, else a new
    one. With `out`: that folder, or ConfigError when it holds something else.
    """
    folder, lock = (_first_free(config) if out is None else _claim(config, out.resolve())), None
    try:
        lock = _locked(folder)
        if lock is None:
            raise ConfigError(f"{folder}: another process evaluates there; wait for it, or name another --out.")
        if not (folder / FINGERPRINT).is_file():
            _replace(folder / "config.yaml", dump_config(config))
            _replace(folder / FINGERPRINT, json.dumps(fingerprint(config), indent=1) + "\n")
        run = config.run.model_copy(update={"dir": folder.parent, "name": folder.name})
        yield config.model_copy(update={"run": run})
    finally:
        if lock is not None:
            lock.close()


def finished_summary(folder: Path) -> dict[str, Any] | None:
    """None for an evaluation that was cut short, unless that was in lm_eval."""
    path = folder / SUMMARY
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _first_free(config: Config) -> Path:
    parent, name = config.run_dir / FOLDER, short_name(config.model.path)
    for number in itertools.count(1):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if _can_go_on(folder, config):
                return folder
            continue
        return folder
    raise AssertionError("unreachable")


def _can_go_on(folder: Path, config: Config) -> bool:
    is_finished = finished_summary(folder) is not None and not (folder / PENDING).exists()
    if is_finished or not (folder / FINGERPRINT).is_file():
        return False
    different = _differences(folder, config)
    if different:
        log.info("%s was cut short, but with other settings or inputs (%s): starting anew", folder, _listed(different))
        return False
    lock = _locked(folder)
    if lock is None:
        return False
    lock.close()
    log.info("going on with %s, which was cut short", folder)
    return True


def _claim(config: Config, folder: Path) -> Path:
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / FINGERPRINT).is_file():
            raise ConfigError(f"--out {folder} is not empty and holds no evaluation; name another folder.")
        different = _differences(folder, config)
        if different:
            raise ConfigError(
                f"--out {folder} holds an evaluation with other settings or inputs: {_listed(different)}. Put them "
                "back, name another folder, or delete this one."
            )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _differences(folder: Path, config: Config) -> list[str]:
    written = json.loads((folder / FINGERPRINT).read_text(encoding="utf-8"))
    return changes(written, config, harmless=WITHOUT_EFFECT)


def _listed(different: list[str]) -> str:
    return "; ".join(different[:MAX_NAMED]) + ("; ..." if len(different) > MAX_NAMED else "")


def _locked(folder: Path) -> IO[str] | None:
    """A lock that ends with the process at the latest; None when another process holds it."""
    file = (folder / LOCK).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def short_name(model: str) -> str:
    """ "runs/d2o/model" -> "d2o", "org/some model" -> "some-model" """
    parts = [part for part in Path(model).parts if part != "model"]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", parts[-1] if parts else "").strip("-._") or "model"

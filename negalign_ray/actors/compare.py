"""`negalign-ray compare`: several methods under several seeds as ordinary runs on one Ray cluster, then one report.

comparison --what is open--> check every method --> run, run, run ... --items of each--> compare_runs --> compare.*
                                                     |  a failure is written down, the others go on

    <out>/<method>-s<seed>/   an ordinary run directory, with fingerprint.json (what decided its result) and,
                              after a failure, failure.json
    <out>/base/               what the base model says and thinks, measured once
    <out>/compare.{json,md,csv,png}

Finished runs are kept: calling it again does what is left, and tries failed runs once more.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negalign_ray.actors.cluster import shared_cluster
from negalign_ray.actors.evaluator import SIDES_FILE
from negalign_ray.actors.plan import make_plan
from negalign_ray.actors.run import OnStatus, ignore_status, train
from negalign_ray.config import Config
from negalign_ray.errors import ConfigError, NegalignError
from negalign_ray.evaluation.comparison import Failure, RunResult, compare_runs
from negalign_ray.evaluation.comparison_plot import draw
from negalign_ray.evaluation.comparison_table import comparison_csv, comparison_markdown
from negalign_ray.evaluation.side import Side
from negalign_ray.methods import method_of
from negalign_ray.metrics import read_metrics
from negalign_ray.report.read import CARD
from negalign_ray.settings.comparison import Comparison, PlannedRun
from negalign_ray.settings.fingerprint import changes, fingerprint

log = logging.getLogger(__name__)
Watch = Callable[[str], AbstractContextManager[OnStatus]]  # title of a run -> what is told of its progress
FINGERPRINT, FAILURE, SUMMARY = "fingerprint.json", "failure.json", "summary.json"


@contextmanager
def unwatched(title: str) -> Iterator[OnStatus]:
    """For callers that watch nothing."""
    yield ignore_status


@dataclass(frozen=True)
class Tools:
    """What a comparison does things with."""

    train: Callable[..., Mapping[str, Any]] = train  # (config, on_status, base_cache) -> summary
    check: Callable[[Config], object] = make_plan  # raises what `train` would raise before it starts anything
    cluster: Callable[[], AbstractContextManager[None]] = shared_cluster


def compare(comparison: Comparison, *, watch: Watch = unwatched, tools: Tools | None = None) -> dict[str, Any]:
    """Run what is not finished, and return the report that also stands in <out>/compare.json.

    Before anything starts: ConfigError when a finished run was made with other settings or inputs, or when a method
    lacks what it needs. A run that fails later is reported as failed. Ctrl-C ends the comparison after the step under
    way; the run under way is done again by the next call.
    """
    tools = tools or Tools()
    left = [run for run in comparison.runs if not is_finished(run)]
    _check(left, tools)
    if left:
        with tools.cluster():
            for number, run in enumerate(left, start=1):
                title = f"[{number}/{len(left)}] {run.method}, seed {run.seed} · {run.config.run_dir}"
                with watch(title) as on_status:
                    _run(run, comparison.out / "base", on_status, tools)
                write_report(comparison)  # so that the table can be read while the rest runs
    return write_report(comparison)


def is_finished(run: PlannedRun) -> bool:
    """Whether its results are there. ConfigError when they are, but not of this run."""
    folder = run.config.run_dir
    written = _read(folder / FINGERPRINT)
    if written is None and ((folder / "metrics.jsonl").exists() or (folder / SUMMARY).exists()):
        raise ConfigError(f"{folder} holds a run that `compare` did not make; name another folder with --out.")
    if written is None or not _has_results(run):
        return False
    different = changes(written, run.config)
    if different:
        raise ConfigError(
            f"{folder} is finished, but was made with other settings or inputs: {'; '.join(different[:5])}"
            f"{'; ...' if len(different) > 5 else ''}. Put them back, name another folder with --out, or delete this "
            "one to run it again."
        )
    return True


def _has_results(run: PlannedRun) -> bool:
    folder = run.config.run_dir
    summary = _read(folder / SUMMARY)
    enough = summary is not None and summary["steps"] >= run.config.learners.steps  # fewer: ended early by Ctrl-C
    return enough and (folder / SIDES_FILE).exists()


def _check(left: list[PlannedRun], tools: Tools) -> None:
    """What each method lacks, all at once and before the first run."""
    problems = []
    one_each: dict[str, PlannedRun] = {}
    for run in left:
        one_each.setdefault(run.method, run)
    for run in one_each.values():  # one seed stands for the others
        try:
            tools.check(run.config)
        except NegalignError as error:
            problems.append(f"{run.method}: {error}")
    if problems:
        raise ConfigError("\n".join(problems))


def _run(run: PlannedRun, base_cache: Path, on_status: OnStatus, tools: Tools) -> None:
    folder = run.config.run_dir
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILURE).unlink(missing_ok=True)
    _write(folder / FINGERPRINT, fingerprint(run.config))
    try:
        summary = tools.train(run.config, on_status=on_status, base_cache=base_cache)
    except Exception as error:  # whatever it is, the other runs do not depend on it
        log.error("%s, seed %d failed: %s: %s", run.method, run.seed, type(error).__name__, error)
        if not isinstance(error, NegalignError):
            log.exception("this is no error that a setting explains")
        _write(folder / FAILURE, {"error": type(error).__name__, "message": str(error)})
        return
    if summary["steps"] < run.config.learners.steps:  # Ctrl-C, which a run takes as a wish to end early
        raise KeyboardInterrupt


# -- the report ------------------------------------------------------------------------------------------------


def write_report(comparison: Comparison) -> dict[str, Any]:
    """From the run directories alone; `{}` before the first run is finished."""
    results, failures = _collect(comparison)
    if not results:
        return {"failed": [vars(failure) for failure in failures]}
    config = comparison.config
    report = compare_runs(
        results,
        failures,
        methods=comparison.methods,
        heads=config.evaluation.heads,
        harm=comparison.harm,
        curve=comparison.curve,
        resamples=config.evaluation.bootstrap,
    )
    report["budget"] = budget(comparison)
    out = comparison.out
    _write(out / "compare.json", report)
    (out / "compare.md").write_text(comparison_markdown(report), encoding="utf-8")
    (out / "compare.csv").write_text(comparison_csv(report), encoding="utf-8")
    draw(report, out / "compare.png")
    return report


def _collect(comparison: Comparison) -> tuple[list[RunResult], list[Failure]]:
    results, failures = [], []
    for run in comparison.runs:
        folder = run.config.run_dir
        failure = _read(folder / FAILURE)
        if failure is not None:
            failures.append(Failure(run.method, run.seed, failure["error"], failure["message"]))
        elif _has_results(run):
            results.append(_result(run, folder))
    return results, failures


def _result(run: PlannedRun, folder: Path) -> RunResult:
    sides, summary = _read(folder / SIDES_FILE), _read(folder / SUMMARY)
    assert sides is not None, "a finished run has both"
    assert summary is not None, "a finished run has both"
    return RunResult(
        method=run.method,
        seed=run.seed,
        before=Side.from_json(sides["before"]),
        after=Side.from_json(sides["after"]),
        rows=read_metrics(folder),
        steps=summary["steps"],
        wall_s=summary["wall_s"],
    )


def budget(comparison: Comparison) -> str:
    """ "30 updates of 6 prompts on MODEL and DATA; answers sampled for a prompt: d2o 2 x 32 tokens, sft none", and the
    prompts to train on where the methods cannot use the same rows."""
    config = comparison.config
    shares = []
    for run in {run.method: run for run in comparison.runs}.values():
        sampling = run.config.sampling
        needs = method_of(run.config.method).needs(run.config.method)
        num = 0 if needs.samples == "unused" else sampling.num_samples
        text = f"{num} x {sampling.max_new_tokens} tokens at most" if num else "none"
        shares.append(f"{run.method} {text}")
    learners = config.learners
    usable = _usable_prompts(comparison)
    prompts = "; prompts to train on: " + ", ".join(f"{name} {num}" for name, num in usable.items())
    return (
        f"{learners.steps} updates of {learners.groups_per_step} prompts on {config.model.path} and "
        f"{Path(config.data.path).name}; answers sampled for a prompt: {', '.join(shares)}"
        f"{prompts if len(set(usable.values())) > 1 else ''}"
    )


def _usable_prompts(comparison: Comparison) -> dict[str, int]:
    """Of every method with a run that has begun: prompts with all answers that it needs, as its run's card says."""
    cards = {run.method: _read(run.config.run_dir / CARD) for run in reversed(comparison.runs)}
    return {name: cards[name]["data"]["num_train"] for name in comparison.methods if cards.get(name)}  # type: ignore[index]


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)

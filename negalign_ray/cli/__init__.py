"""The command line, `negalign-ray COMMAND`. A command imports what it needs when it runs, so that `--help` is instant.

A typed error (errors.py) becomes one message on stderr and its exit code; `--debug` shows the traceback. Ctrl-C: 130,
SIGTERM: 143.
"""

import logging
import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from negalign_ray import __version__
from negalign_ray.cli.grafana import grafana
from negalign_ray.cli.outputs import require_file, require_folder, storage_error
from negalign_ray.cli.runs import logs, scale, status, stop
from negalign_ray.cli.submit import submit, train_submitted
from negalign_ray.cli.top import top
from negalign_ray.errors import ConfigError, NegalignError, PlacementError, Terminated

if TYPE_CHECKING:
    from negalign_ray.config import Config

DEFAULT_PRESET, DEFAULT_REWARD_PRESET = "d2o", "reward"
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
# Read by libraries when they are imported: what they would print goes past the user.
QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}

out = Console()
err = Console(stderr=True)


class _Group(TyperGroup):
    """Takes `--debug` anywhere on the line, and turns typed errors into messages."""

    debug = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        self.debug = "--debug" in args or os.environ.get("NEGALIGN_DEBUG") == "1"
        return super().parse_args(ctx, [arg for arg in args if arg != "--debug"])

    def invoke(self, ctx: Any) -> Any:
        try:
            return _stored(super().invoke, ctx)
        except NegalignError as error:
            if self.debug:
                raise
            err.print(Text.assemble((f"{type(error).__name__}: ", "bold red"), str(error)), soft_wrap=True)
            _print_notes(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as interrupt:
            if self.debug:
                raise
            err.print("Terminated." if isinstance(interrupt, Terminated) else "Interrupted.")
            _print_notes(interrupt)
            raise typer.Exit(Terminated.exit_code if isinstance(interrupt, Terminated) else INTERRUPTED) from None


def _stored(call: Callable[[Any], Any], ctx: Any) -> Any:
    """StorageError for what the file system refuses, whatever was under way."""
    try:
        return call(ctx)
    except OSError as error:
        failure = storage_error(error)
        if failure is None:
            raise
        raise failure from error


def _print_notes(error: BaseException) -> None:
    """How to go on, where a run was ended."""
    for note in getattr(error, "__notes__", ()):
        err.print(Text(note), soft_wrap=True)


app = typer.Typer(cls=_Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
data_app = typer.Typer(no_args_is_help=True, help="Look at a data file before a run.")
app.add_typer(data_app, name="data")

Preset = Annotated[str | None, typer.Option("--preset", help="Name (see `negalign-ray presets`) or YAML file.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file, merged over the preset.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="One setting, merged last. Repeatable.")
]


def _writable(json_file: Path | None) -> Path | None:
    require_file(json_file, option="--json")
    return json_file


Json = Annotated[Path | None, typer.Option("--json", callback=_writable, help="Also write the figures to this file.")]


def main() -> None:
    """Entry point of the console script."""
    app()


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"negalign-ray {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Align language models, online and on Ray, using examples of what they must not say."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from rich.logging import RichHandler

    handler = RichHandler(console=err, show_time=False, show_level=False, show_path=False)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(message)s", force=True)
    logging.getLogger("negalign_ray").setLevel(logging.INFO)


@app.command()
def train(
    preset: Preset = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, start nothing.")
    ] = False,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Go on with the run in this folder instead.")
    ] = None,
) -> None:
    """Align a model: `negalign-ray train --preset quickstart`, or d2o with `--set data.path=FILE`."""
    if resume is not None:
        if preset or config:
            raise ConfigError(f"--resume {resume} has its own config.yaml; leave out --preset and --config.")
        _resume(resume, overrides or [], dry_run=dry_run)
        return
    settings = _load(preset, config, overrides)
    if dry_run:
        from negalign_ray.actors.run import dry_run as plan_of

        out.print(plan_of(settings))
        return
    run_training(settings)


def run_training(settings: "Config") -> None:
    from negalign_ray.settings.run_dir import require_new

    require_new(settings)
    require_folder(settings.run_dir, option="run.dir:")
    from negalign_ray.actors.run import train as run
    from negalign_ray.cli.progress import Progress

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with SIGINT ignored
    with Progress(err, title=f"{settings.method.name} · {settings.model.path} · {settings.run_dir}") as progress:
        summary = run(settings, on_status=progress.update)
    _print_results(settings, summary)


def _resume(run_dir: Path, overrides: list[str], *, dry_run: bool) -> None:
    from negalign_ray.actors.resume import find_checkpoint
    from negalign_ray.actors.run import dry_run as plan_of
    from negalign_ray.actors.run import resume as run
    from negalign_ray.cli.progress import Progress

    resumption = find_checkpoint(run_dir, overrides=overrides)
    settings, step = resumption.config, resumption.checkpoint.step
    if dry_run:
        out.print(plan_of(settings))
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    title = f"{settings.method.name} · {settings.model.path} · {settings.run_dir} · from step {step}"
    with Progress(err, title=title) as progress:
        summary = run(resumption, on_status=progress.update)
    _print_results(settings, summary)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder, packaged model or hub name.")],
    preset: Preset = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    base: Annotated[str | None, typer.Option("--base", help="Model to compare with (references.rpos).")] = None,
    out_dir: Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="Instead of a new folder.")] = None,
    lm_eval: Annotated[
        str | None, typer.Option("--lm-eval", metavar="TASK,...", help="Also run these benchmarks of lm_eval.")
    ] = None,
    lm_eval_options: Annotated[
        str, typer.Option("--lm-eval-options", help='More of its options, e.g. "--limit 100".')
    ] = "",
    json_file: Json = None,
) -> None:
    """Measure harm, refusals, likelihoods and signs of collapse of a model on the held-out rows of a configuration.

    Everything is written to a new folder, evaluations/NAME below the run directory. An evaluation that was cut short
    goes on where it stopped.
    """
    require_folder(out_dir, option="--out")
    named = {"model.path": model, "references.rpos": base}
    more = [f"{name}={_quoted(value)}" for name, value in named.items() if value is not None]
    settings = _load(preset, config, [*(overrides or []), *more])
    if out_dir is None:
        require_folder(settings.run_dir, option="run.dir:")
    from negalign_ray.cli.evaluate import evaluate_and_show

    tools = {"tasks": lm_eval, "options": lm_eval_options}
    keep = partial(_write_json, json_file)
    evaluate_and_show(settings, folder=out_dir, lm_eval=tools, keep=keep, out=out, err=err)


@app.command()
def compare(
    file: Annotated[Path, typer.Argument(help="YAML file with `common`, `entries` and `seeds`; see docs/compare.md.")],
    overrides: Overrides = None,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder of the runs and the report.")] = Path("runs/compare"),
) -> None:
    """Several methods, same model, data and updates, several seeds: one table and one plot. Finished runs are kept."""
    require_folder(out_dir, option="--out")
    from negalign_ray.cli.compare import run_comparison

    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not run_comparison(file, out_dir=out_dir, overrides=overrides or [], out=out, err=err):
        raise typer.Exit(1)


@app.command()
def diagnose(
    preset: Preset = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    max_answers: Annotated[int, typer.Option(min=2, help="Good, and bad, answers read of each behaviour.")] = 128,
    run_dir: Annotated[
        Path | None, typer.Option("--run", help="Hold the prediction against this finished run instead.")
    ] = None,
) -> None:
    """Before a run: which behaviours will be learned first. With --run: whether they were."""
    if run_dir is None:
        settings = _load(preset, config, overrides)
        require_folder(settings.run_dir, option="run.dir:")
        from negalign_ray.cli.diagnose import predict

        predict(settings, max_answers=max_answers, out=out, err=err)
        return
    if preset or config or overrides:
        raise ConfigError(f"--run {run_dir} has its own config.yaml; leave out --preset, --config and --set.")
    require_folder(run_dir, option="--run")
    from negalign_ray.cli.diagnose import hold_against

    hold_against(run_dir, out=out)


@app.command("train-reward")
def train_reward(
    data: Annotated[str, typer.Argument(help="A file with good and bad answers (unpaired, pairs, transcripts).")],
    out_dir: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the model, its report and rest.jsonl.")],
    preset: Annotated[str | None, typer.Option("--preset", help="reward (default), reward_frozen, or a file.")] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    frac: Annotated[
        float | None, typer.Option(min=0.01, max=1.0, help="Share of the prompts it sees; the others: OUT/rest.jsonl.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the reward model in OUT.")] = False,
) -> None:
    """Train a reward model (harm, help, cost, ...), measured on held-out prompts beside the answers' length."""
    require_folder(out_dir, option="OUT")
    from negalign_ray.cli.reward import train_and_show
    from negalign_ray.settings import load_reward_config

    named = preset or (None if config else DEFAULT_REWARD_PRESET)
    more = [] if frac is None else [f"data.frac={frac}"]
    settings = load_reward_config(preset=named, file=config, overrides=[*(overrides or []), *more])
    train_and_show(settings, data=data, folder=out_dir, overwrite=overwrite, out=out, err=err)


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="Model folder, packaged model or hub name.")],
    prompt: Annotated[str | None, typer.Option(help="One question; without it, a conversation begins.")] = None,
    instruction: Annotated[str | None, typer.Option(help="Put before every prompt, as a system turn.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 = greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    engine: Annotated[
        Literal["transformers", "vllm"], typer.Option(help="transformers starts faster.")
    ] = "transformers",
) -> None:
    """Try a model: one answer with --prompt, else question by question (an empty line or Ctrl-D ends)."""
    from negalign_ray.cli.talk import Talk
    from negalign_ray.records import SamplingSpec

    spec = SamplingSpec(max_new_tokens=max_new_tokens, temperature=temperature)
    with err.status(f"loading {model}"):
        talk = Talk.start(model, engine=engine, spec=spec, instruction=instruction, seed=seed)
    if prompt is not None:
        out.print(talk.answer(prompt), markup=False, highlight=False, soft_wrap=True)
        return
    while question := _ask():
        out.print(talk.answer(question), markup=False, highlight=False, soft_wrap=True, style="green")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, finished or not.")],
    file: Annotated[
        Path | None, typer.Option("--out", help="Default: report.html in the run's folder; of several runs, here.")
    ] = None,
    max_samples: Annotated[
        int | None, typer.Option(min=0, help="Prompts whose texts are embedded, covered until clicked; 0 = no texts.")
    ] = None,
) -> None:
    """One HTML file on one run or several: verdict, figures with intervals, curves, time, events and samples."""
    from negalign_ray.cli.report import make_report

    make_report(runs, file=file, max_samples=max_samples, out=out)


@app.command()
def presets() -> None:
    """List the packaged configurations."""
    from rich.table import Table

    from negalign_ray.settings import list_presets

    table = Table.grid(padding=(0, 2))
    for preset in list_presets():
        table.add_row(Text(preset.name, style="bold"), Text(preset.summary))
    out.print(table)


@app.command()
def bench(
    preset: Preset = "quickstart",
    config: ConfigFile = None,
    overrides: Overrides = None,
    only: Annotated[str | None, typer.Option(help="Sections, e.g. learner,sampler (see docs/benchmarks.md).")] = None,
    json_file: Json = None,
) -> None:
    """Measure every role against its ceiling on this machine, and print one JSON object."""
    settings = _load(preset, config, overrides)
    from negalign_ray.bench.run import bench as run

    sections = None if only is None else [name.strip() for name in only.split(",")]
    figures = run(settings, sections=sections)
    out.print_json(data=figures)
    _write_json(json_file, figures)


@app.command()
def plan(
    config: Annotated[Path | None, typer.Argument(help="YAML file, merged over the preset.")] = None,
    preset: Preset = None,
    overrides: Overrides = None,
    cluster: Annotated[
        str | None, typer.Option(help='Instead of RAY_ADDRESS or this machine: "2x(8cpu,64gb,1gpu)".')
    ] = None,
    bench_files: Annotated[
        list[Path] | None, typer.Option("--bench", help="Figures of `negalign-ray bench --json FILE`. Repeatable.")
    ] = None,
    simulate: Annotated[bool, typer.Option("--simulate", help="Simulate the run; needs --bench.")] = False,
    json_file: Json = None,
) -> None:
    """Who would sit where, the memory of each role, and with --bench the time of a step. Starts nothing."""
    settings = _load(preset, config, overrides)
    from negalign_ray.cli.planning import show_plan

    figures = show_plan(settings, cluster=cluster, bench=bench_files or [], simulate=simulate, out=out)
    _write_json(json_file, figures)
    if figures["missing"]:
        raise PlacementError(figures["missing"])


@app.command()
def doctor(json_file: Json = None) -> None:
    """Look at this machine: versions, memory, disk, GPUs, the cluster. Exits with 1 where something is broken."""
    from negalign_ray.cli.doctor import show_findings

    findings = show_findings(out=out, err=err)
    _write_json(json_file, findings)
    if any(finding["level"] == "problem" for finding in findings):
        raise typer.Exit(1)


for _command in (submit, status, top, logs, stop, scale, grafana):
    app.command()(_command)
app.command(hidden=True)(train_submitted)


@data_app.command("check")
def data_check(
    file: Annotated[str, typer.Argument(help="JSONL, Parquet or CSV file, a `datasets` folder or a hub name.")],
    layout: Annotated[str | None, typer.Option("--format", help="Name the format instead of recognising it.")] = None,
    model: Annotated[str | None, typer.Option(help="Whose tokenizer and chat template to use.")] = None,
    show_text: Annotated[bool, typer.Option("--show-text", help="Show texts, which may offend.")] = False,
    max_problems: Annotated[int, typer.Option(min=0, help="Broken rows listed; 0 = all.")] = 20,
    preset: Preset = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Format, counts, lengths, broken rows, and one row with its loss mask. Exits with 3 when rows are broken."""
    named = {"data.path": file, "data.format": layout, "model.path": model}
    more = [f"{name}={_quoted(value)}" for name, value in named.items() if value is not None]
    settings = _load(preset, config, [*(overrides or []), *more])
    from negalign_ray.data.chat import load_chat
    from negalign_ray.data.check import check_data, render_report
    from negalign_ray.errors import DataError
    from negalign_ray.models.packaged import resolve_model

    chat = load_chat(resolve_model(settings.model.path), template=settings.model.chat_template)
    report = check_data(settings.data, chat)
    out.print(render_report(report, show_text=show_text, max_problems=max_problems))
    if not report.ok:
        raise typer.Exit(DataError.exit_code)


@data_app.command("judge")
def data_judge(
    file: Annotated[str, typer.Argument(help="A file with good and bad answers (unpaired, pairs, transcripts).")],
    out_dir: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for judge/ and rest.jsonl.")],
    frac: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Share of the prompts that only the judge sees.")
    ] = 0.4,
    reads: Annotated[
        Literal["response", "prompt_response"], typer.Option("--input", help="What the judge reads.")
    ] = "response",
    preset: Preset = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Fit a judge on a share of the rows, and write the other rows to train on: the judge never meets them."""
    require_folder(out_dir, option="OUT")
    settings = _load(preset, config, [*(overrides or []), f"data.path={_quoted(file)}"])
    from negalign_ray.cli.judge import make_judge

    made = make_judge(settings, out_dir, judge_frac=frac, text_input=reads)
    auroc = "unknown" if made.card.auroc is None else f"{made.card.auroc:.3f}"
    answers = f"{made.card.num_harmful} bad, {made.card.num_benign} good answers"
    lines = {
        "judge": f"{made.folder}  (kind: linear, input: {reads}; {answers})",
        "AUROC": f"{auroc}  (cross-validated; 0.5 is chance)",
        "rest": f"{made.rest}  ({made.num_rest_prompts} prompts, for data.path)",
    }
    _print_lines(lines)


def _load(preset: str | None, file: Path | None, overrides: list[str] | None) -> "Config":
    """Call it before seconds of imports: what can be seen at once is said at once."""
    from negalign_ray.cli.first_look import first_look
    from negalign_ray.settings import load_config

    if preset is None and file is None:
        preset = DEFAULT_PRESET
    config = load_config(preset=preset, file=file, overrides=overrides or [])
    first_look(config)
    return config


def _quoted(value: str) -> str:
    """A value of an option as YAML text that reads back as exactly that text."""
    import json

    return json.dumps(value)


def _ask() -> str:
    try:
        return out.input("[bold]> [/]").strip()
    except EOFError:
        return ""


def _print_results(settings: "Config", summary: dict[str, Any]) -> None:
    run_dir = settings.run_dir
    if summary.get("before"):
        from negalign_ray.evaluation.table import summary_table

        out.print(summary_table(summary))
    lines = {
        "model": run_dir / "model",
        "metrics": run_dir / "metrics.jsonl",
        "samples": run_dir / "samples",
        "summary": run_dir / "summary.json",
        "logs": run_dir / "logs",
        "try it": f"negalign-ray generate {run_dir / 'model'}",
    }
    if (run_dir / "report.html").is_file():
        lines |= {"report": run_dir / "report.html"}
    if summary.get("stopped_by"):
        lines = {"stopped": summary["stopped_by"]["reason"], **lines}
    _print_lines(lines)


def _print_lines(lines: Mapping[str, object]) -> None:
    for name, value in lines.items():
        out.print(f"{name:8} {value}", markup=False, highlight=False, soft_wrap=True)


def _write_json(file: Path | None, figures: Any) -> None:
    if file is None:
        return
    import json

    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")

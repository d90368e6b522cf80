"""`negalign-ray compare` on the terminal: a progress view for each run, then the table."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from negalign_ray.actors.compare import compare
from negalign_ray.actors.run import OnStatus
from negalign_ray.cli.progress import Progress
from negalign_ray.errors import NothingFinishedError
from negalign_ray.evaluation.comparison_table import comparison_table
from negalign_ray.settings.comparison import load_comparison

FILES = ("compare.md", "compare.csv", "compare.json", "compare.png")


def run_comparison(file: Path, *, out_dir: Path, overrides: Sequence[str], out: Console, err: Console) -> bool:
    """True when every run is finished. Raises NothingFinishedError when none is."""

    @contextmanager
    def watch(title: str) -> Iterator[OnStatus]:
        with Progress(err, title=title) as progress:
            yield progress.update

    report = compare(load_comparison(file, out=out_dir, overrides=overrides), watch=watch)
    if "values" not in report:
        lines = [f"{f['method']}, seed {f['seed']}: {f['error']}: {f['message']}" for f in report["failed"]]
        raise NothingFinishedError("\n".join(["no run was finished:", *lines]))
    out.print(comparison_table(report, title=str(out_dir)))
    for name in FILES:
        if (out_dir / name).exists():
            out.print(out_dir / name, markup=False, highlight=False, soft_wrap=True)
    return not report["failed"]

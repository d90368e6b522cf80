"""`negalign-ray report` on the terminal: where the file is, and what it left out."""

from pathlib import Path

from rich.console import Console

from negalign_ray.cli.outputs import require_file
from negalign_ray.report import FILE_NAME, write_report


def make_report(runs: list[Path], *, file: Path | None, max_samples: int | None, out: Console) -> None:
    """Raises DataError when a folder is no run. Without `max_samples`, as few as the settings of the runs allow."""
    option = "the report" if file is None else "--out"
    file = file or (runs[0] / FILE_NAME if len(runs) == 1 else Path(FILE_NAME))
    require_file(file, option=option)
    samples = write_report(runs, file, max_samples=max_samples)
    out.print(file, markup=False, highlight=False, soft_wrap=True)
    for what, kept in (("evaluated prompts", samples.evaluation), ("training groups", samples.training)):
        if kept.kept < kept.whole:
            out.print(f"{kept.kept} of {kept.whole} {what} are embedded.", highlight=False)

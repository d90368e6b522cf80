"""A report of one run or several: a single HTML file that works from the disk.

run directories --read--> RunFiles --verdict, outcome, curves, times, timeline, facts, samples--> page --> report.html
"""

from collections.abc import Sequence
from pathlib import Path

from negalign_ray.config import ReportConfig
from negalign_ray.report.page import render
from negalign_ray.report.read import CONFIG, RunFiles, read_runs
from negalign_ray.report.samples import PackedSamples, pack_samples

FILE_NAME = "report.html"


def write_report(runs: Sequence[Path], out: Path, *, max_samples: int | None = None) -> PackedSamples:
    """Write the file `out`, and return what it holds of the runs' samples. DataError: one of `runs` is no run.

    `max_samples` bounds the prompts whose texts are embedded, of all runs together; 0 leaves every text out. Without
    it, the smallest `report.max_samples` of the runs decides: who shows no texts shows none beside another run either.
    """
    read = read_runs(runs)
    samples = pack_samples(read, max_samples=_smallest(read) if max_samples is None else max_samples)
    text = render(read, samples)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f"{out.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="replace", newline="\n")
        temporary.replace(out)
    except OSError:  # `out` is a folder, the disk is full
        temporary.unlink(missing_ok=True)
        raise
    return samples


def _smallest(runs: Sequence[RunFiles]) -> int:
    """0 where a config.yaml that is there says nothing that can be read."""
    default = ReportConfig().max_samples
    wanted = [run.setting("report.max_samples", 0 if run.is_unreadable(CONFIG) else default) for run in runs]
    return min(value if isinstance(value, int) and value >= 0 else 0 for value in wanted)

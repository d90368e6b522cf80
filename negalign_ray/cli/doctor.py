"""`negalign-ray doctor`: one line for each check."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from negalign_ray.doctor.checks import Finding, examine
from negalign_ray.doctor.facts import Facts
from negalign_ray.doctor.gather import gather

STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def show_findings(*, out: Console, err: Console, look: Callable[[], Facts] = gather) -> list[dict[str, Any]]:
    """Prints the findings and returns them as plain data."""
    with err.status("looking"):
        findings = examine(look())
    for finding in findings:
        out.print(line_of(finding), soft_wrap=True)
    return [asdict(finding) for finding in findings]


def line_of(finding: Finding) -> Text:
    """ "warning  shm      1.0 GiB free ...; do this" """
    remedy = f"  ->  {finding.remedy}" if finding.remedy else ""
    level = (f"{finding.level:8}", STYLES[finding.level])
    return Text.assemble(level, f" {finding.check:9} {finding.found}", (remedy, "bold"))

"""Which run a run directory holds: one that was overwritten had the same name, and may have left copies elsewhere."""

import secrets
from pathlib import Path

FILE_NAME = "run_id"


def write_run_id(run_dir: Path, run_id: str | None = None) -> None:
    """A new one, unless it is told."""
    (run_dir / FILE_NAME).write_text((run_id or secrets.token_hex(8)) + "\n", encoding="utf-8")


def read_run_id(run_dir: Path) -> str | None:
    """None where it is lost, or the run began before there were any."""
    file = run_dir / FILE_NAME
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None

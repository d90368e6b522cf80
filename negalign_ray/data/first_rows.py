"""The first rows of a data file: is it there, does it hold rows, and of which format? No tokenizer, no model."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from negalign_ray.config import DataConfig
from negalign_ray.data.formats import recognise
from negalign_ray.data.sources import SourceRow, is_on_disk, read_rows, source_name
from negalign_ray.errors import DataError

SNIFFED_ROWS = 100  # the format is recognised from the columns of the first rows
EXAMPLE = '{"prompt": "...", "rejected": "..."}'


@dataclass(frozen=True, slots=True)
class OpenedRows:
    source: str  # short name for messages
    format: str
    rows: Iterator[SourceRow]  # from the first one on


def open_rows(path: str, *, config: DataConfig) -> OpenedRows:
    """DataError when there is no such file, no row with columns among the first, or when they make no format."""
    source = source_name(path)
    rows = read_rows(path, split=config.split)
    head = list(itertools.islice(rows, SNIFFED_ROWS))
    columns = {column for row in head for column in row.values}
    if not columns:
        faults = f" (row {head[0].number} is {head[0].fault})" if head and head[0].fault else ""
        what = "none of its first rows has columns" if head else "it holds no row"
        raise DataError(f"{source}: {what}{faults}; write one JSON object a line, e.g. {EXAMPLE}.")
    return OpenedRows(source, recognise(columns, wanted=config.format, source=source), rows=itertools.chain(head, rows))


def look_at_data(config: DataConfig) -> None:
    """What `open_rows` would refuse, for plain files: a hub is not asked, a folder is not loaded."""
    for path in (config.path, config.heldout_path):
        if path is not None and is_on_disk(path):
            open_rows(path, config=config)

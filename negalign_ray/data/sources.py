"""Rows of JSONL, JSON, CSV and Parquet files, `datasets` folders and hub data sets, each with its line or row number.

A row that cannot be decoded becomes a `SourceRow` with a `fault` instead of an exception, so that a check can list all
of them. Nothing here runs code that a data set brings along.
"""

import csv
import difflib
import gzip
import itertools
import json
import logging
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from negalign_ray import hub
from negalign_ray.errors import DataError

logger = logging.getLogger(__name__)

PACKAGED = {"quickstart": Path(__file__).parent / "quickstart_negatives.jsonl"}
FILE_KINDS = (".jsonl", ".json", ".csv", ".parquet")  # .jsonl, .json and .csv may also end in .gz
HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
MAX_CSV_FIELD_CHARS = 1 << 24  # the csv module's own limit of 131,072 is shorter than long transcripts


@dataclass(frozen=True, slots=True)
class SourceRow:
    """`number` counts from 1: the line where the row starts (JSONL, CSV), else its position."""

    number: int
    values: Mapping[str, Any]
    fault: str | None = None  # why the row could not be decoded; `values` is empty then


def read_rows(path: str, *, split: str = "train", setting: str = "data.path") -> Iterator[SourceRow]:
    """Rows of `path`: a packaged name ("quickstart"), a file, a `datasets` folder, or a hub name (in this order).
    `setting` is where the user gave the path, for messages.

    Raises DataError at the call, not at the first row, when there is no such file, folder or data set.
    """
    file = PACKAGED.get(path) or Path(path).expanduser()
    if file.is_dir():
        return _dataset_rows(_load_folder(file, split=split, setting=setting))
    if file.is_file():
        return _file_rows(file)
    if _looks_like_file(path):
        raise DataError(f"{setting}={path!r}: no such file or folder.{_near_names(file)}")
    return _dataset_rows(_load_hub(path, split=split, setting=setting, hint=_near_names(file)))


def is_on_disk(path: str) -> bool:
    """Whether `read_rows` would open a plain file, or say at once that there is none; a hub is not asked."""
    file = PACKAGED.get(path) or Path(path).expanduser()
    return file.is_file() or (not file.is_dir() and _looks_like_file(path))


def source_name(path: str) -> str:
    """Short name for messages: the file's name, or the hub name as given."""
    return Path(path).name if Path(path).exists() else path


def _looks_like_file(path: str) -> bool:
    return not HUB_NAME.match(path) or path.removesuffix(".gz").endswith(FILE_KINDS)


def _near_names(file: Path) -> str:
    folder = file.parent
    if not folder.is_dir():
        return f" The folder {str(folder)!r} does not exist either."
    names = sorted(entry.name for entry in folder.iterdir())
    near = difflib.get_close_matches(file.name, names, n=3, cutoff=0.5)
    near = near or [name for name in names if name.removesuffix(".gz").endswith(FILE_KINDS)][:5]
    listed = ", ".join(repr(str(folder / name)) for name in near)
    return f" Near it: {listed}." if near else f" The folder {str(folder)!r} holds no data file."


def _file_rows(file: Path) -> Iterator[SourceRow]:
    kind = Path(file.name.removesuffix(".gz")).suffix.lower()
    if kind == ".parquet":
        return _parquet_rows(file)
    readers = {".jsonl": _jsonl_rows, ".json": _json_rows, ".csv": _csv_rows}
    if kind not in readers:
        raise DataError(f"{file}: files ending in {kind!r} cannot be read; use one of {', '.join(FILE_KINDS)}.")
    return readers[kind](file)


def _open(file: Path) -> BinaryIO:
    # gzip.GzipFile reads like a binary file, but is not declared as one.
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")  # type: ignore[return-value]


def _jsonl_rows(file: Path) -> Iterator[SourceRow]:
    number = 0
    with _open(file) as stream:
        try:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield _json_row(number, line)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{file}: the archive is damaged after line {number} ({error}); make it again.") from error


def _json_row(number: int, line: bytes) -> SourceRow:
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return SourceRow(number, {}, f"not UTF-8 at byte {error.start} of the line")
    except json.JSONDecodeError as error:  # its own line number counts inside the row
        return SourceRow(number, {}, f"not JSON: {error.msg} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:
        return SourceRow(number, {}, f"not JSON: {error}")
    return _object_row(number, values)


def _object_row(number: int, values: Any) -> SourceRow:
    if not isinstance(values, dict):
        return SourceRow(number, {}, f"a JSON {type(values).__name__}, not an object with columns")
    return SourceRow(number, values)


def _json_rows(file: Path) -> Iterator[SourceRow]:
    """A `.json` file: one list of objects, or one object per line as in `.jsonl`."""
    with _open(file) as stream:
        content = stream.read()
    if not content.lstrip().startswith(b"["):
        yield from _jsonl_rows(file)
        return
    try:
        rows = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not a JSON list ({error}); write one JSON object per line instead.") from error
    for number, values in enumerate(rows, start=1):
        yield _object_row(number, values)


def _csv_rows(file: Path) -> Iterator[SourceRow]:
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CSV_FIELD_CHARS))
    with _open(file) as stream:
        lines = (line.decode("utf-8-sig" if index == 0 else "utf-8") for index, line in enumerate(stream))
        reader = csv.reader(lines, strict=True)  # not DictReader: it does not tell where it skipped blank lines
        start = 1
        columns: list[str] = []
        try:
            for cells in reader:
                if columns and cells:
                    yield _csv_row(start, columns, cells)
                columns = columns or cells
                start = reader.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{file}: line {start} is not CSV in UTF-8 ({error}); later lines were not read."
            ) from error


def _csv_row(number: int, columns: list[str], cells: list[str]) -> SourceRow:
    """Cells that are missing at the end are None."""
    if len(cells) > len(columns):
        return SourceRow(number, {}, f"{len(cells) - len(columns)} more cells than column names")
    return SourceRow(number, dict(itertools.zip_longest(columns, cells)))


def _parquet_rows(file: Path) -> Iterator[SourceRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{file}: not a Parquet file ({error}).") from error
    return _batched_rows(table)


def _batched_rows(table) -> Iterator[SourceRow]:
    number = 0
    for batch in table.iter_batches(batch_size=1024):
        for values in batch.to_pylist():
            number += 1
            yield SourceRow(number, values)


def _load_folder(folder: Path, *, split: str, setting: str):
    if not any((folder / name).is_file() for name in ("dataset_info.json", "dataset_dict.json", "state.json")):
        files = sorted(f.name for f in folder.iterdir() if f.name.removesuffix(".gz").endswith(FILE_KINDS))
        hint = f"name one of its files: {', '.join(files[:5])}" if files else "it holds no data file either"
        raise DataError(f"{setting}={str(folder)!r} is not a folder written by datasets' save_to_disk; {hint}.")
    import datasets

    try:
        dataset = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: datasets cannot load this folder ({error}).") from error
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise DataError(f"data.split={split!r} is not in {folder}; it has {', '.join(map(repr, dataset))}.")
        return dataset[split]
    return dataset


def _load_hub(name: str, *, split: str, setting: str, hint: str):
    import datasets

    unreachable = hub.why_unreachable()
    try:
        with _offline(datasets.config) if unreachable else nullcontext():
            # datasets >= 4 refuses data sets that need a script; there is no setting here that could allow them.
            rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # the hub client raises a dozen unrelated types for "not there" and "no network"
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise DataError(
            f"{setting}={name!r} is neither a file nor a folder here, and the hub did not deliver it "
            f"(split {split!r}; {unreachable or reason}). Download it on a machine with access, and name the "
            f"file.{hint}"
        ) from error
    if unreachable:
        logger.warning("%s=%s is taken from the cache, as it was (%s)", setting, name, unreachable)
    return rows


@contextmanager
def _offline(config: Any) -> Iterator[None]:
    """`datasets` looks into its cache alone; the variable that says so is read only when it is imported."""
    before, config.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _dataset_rows(dataset) -> Iterator[SourceRow]:
    return (SourceRow(number, values) for number, values in enumerate(dataset, start=1))

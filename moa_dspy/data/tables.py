"""Readers of tables (CSV, JSONL, JSON, Parquet, hub data sets) as records.

Every reader refuses a table that is broken, with one line that says where.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moa_dspy.errors import DataError

_DELIMITERS = (",", ";", "\t")
"""Signs that may part the cells of a CSV file."""

Record = tuple[str, dict[str, Any]]
"""Where the row is ("line 3"), and its columns."""


def read_records(path: Path) -> Iterator[Record]:
    """Yield where each row of the file is, and its columns; the suffix tells the format.

    Raises:
        DataError: The file is missing, in no known format or broken; when a row is asked for.
    """
    if path.suffix.lower() not in FORMATS:
        known = ", ".join(sorted(FORMATS))
        raise DataError(f"{path}: unknown format {path.suffix!r}; known ones are {known}.")
    check_is_file(path)
    yield from FORMATS[path.suffix.lower()](path)


def check_is_file(path: Path) -> None:
    """Raise a `DataError` unless the path is a file."""
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise DataError(f"{path} {problem}.")


def read_text(path: Path) -> str:
    """Return the UTF-8 text of a file; a byte order mark is left out."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start}."
        ) from error


def _jsonl(path: Path) -> Iterator[Record]:
    # Not splitlines(): a JSON text may hold U+2028 and its like.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, {place} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise DataError(f"{path}, {place} must be a JSON object, but is a {kind}.")
        yield place, row


def _csv(path: Path) -> Iterator[Record]:
    header: list[str] = []
    for place, cells in _csv_lines(path):
        if not header:
            header = _header(cells, f"{path}, {place}")
            continue
        # What spreadsheets leave below a table, such as ",,".
        if len(cells) > 1 and not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise DataError(
                f"{path}, {place} has {len(cells)} cells, but the header has {len(header)}."
            )
        yield place, dict(zip(header, cells, strict=True))


def _csv_lines(path: Path) -> list[tuple[str, list[str]]]:
    text = read_text(path)
    delimiter = _delimiter_of(text)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    # The limit, 128 KiB by default, is the process's: it is put back at once.
    limit = csv.field_size_limit(max(len(text), 131_072))
    try:
        return [(f"line {reader.line_num}", cells) for cells in reader if cells]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is not CSV: {error}.") from error
    finally:
        csv.field_size_limit(limit)


def _delimiter_of(text: str) -> str:
    """Return what parts the cells of the header: the sign that makes most of them."""

    def n_cells(delimiter: str) -> int:
        try:
            rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
            return len(next(filter(None, rows), []))
        except csv.Error:
            return 0

    # Of equals the comma, which stands first.
    return max(_DELIMITERS, key=n_cells)


def _header(cells: list[str], place: str) -> list[str]:
    for name in cells:
        if cells.count(name) > 1:
            raise DataError(f"{place}: column {name!r} comes twice.")
    return cells


def _parquet(path: Path) -> Iterator[Record]:
    # Here, not at the top: importing this library must not load pyarrow.
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{path} is not Parquet: {reason}.") from error
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row


FORMATS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".tsv": _csv,
}
"""Suffix -> reader of one file, which yields where each row is and its columns."""

SUFFIXES = (*FORMATS, ".json")
"""Suffixes that `records_of` reads."""


def find_file(source: Path, *names: str) -> Path:
    """Return the source if it is a file, else the folder's file with one of the names.

    A name is a file name without its suffix; where no file is called exactly so, the only
    one that starts with it will do ("train" finds train-00000-of-00001.parquet).

    Raises:
        DataError: There is no such source or file, or several start with the name.
    """
    if not source.is_dir():
        check_is_file(source)
        return source
    files = [file for file in sorted(source.iterdir()) if file.suffix.lower() in SUFFIXES]
    for name in names:
        exact = [file for file in files if file.stem == name]
        found = exact or [file for file in files if file.name.startswith(name)]
        if len(found) > 1:
            shown = ", ".join(file.name for file in found)
            raise DataError(f"{source} has several files for {name!r} ({shown}): name one.")
        if found:
            return found[0]
    wanted = " or ".join(repr(name) for name in names)
    raise DataError(f"{source} has no file {wanted} ({', '.join(SUFFIXES)}).")


def records_of(path: Path) -> Iterator[Record]:
    """Yield the rows of a file: any format of `read_rows`, or JSON.

    JSON is a list of objects, or an object whose "examples" is one.

    Raises:
        DataError: The file is not what its suffix says.
    """
    if path.suffix.lower() != ".json":
        yield from read_records(path)
        return
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}.") from error
    rows = content.get("examples") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} must hold a list of objects, or one under 'examples'.")
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", row


def hub_records(
    name: str, *, split: str, config: str | None = None, file: str | None = None
) -> Iterator[Record]:
    """Yield where each row of a hub split is, and its columns.

    Args:
        name: Repository on the hub or a folder; of a `file` its name for errors.
        split: As the data set calls it.
        config: Configuration, where the data set has several.
        file: URL or path of a JSON file to read instead of a declared split. Data sets
            that a Python script declares cannot be loaded by name since `datasets` 4.

    Raises:
        DataError: It cannot be loaded, whatever the reason; says how to go on without the hub.
    """
    import datasets  # Here, not at the top: importing this library must not load it.

    try:
        table: Any = (
            datasets.load_dataset(name, config, split=split)
            if file is None
            else datasets.load_dataset("json", data_files=file, split="train")
        )
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise DataError(
            f"{name}, split {split!r}, cannot be loaded from the hub "
            f"({type(error).__name__}: {reason}); give the path of a local copy instead."
        ) from error
    for number, row in enumerate(table, start=1):
        yield f"row {number}", dict(row)

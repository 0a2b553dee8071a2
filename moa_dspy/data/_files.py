"""The right file of a folder is found, and a JSON file that holds a whole table is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from moa_dspy.data._rows import FORMATS, Record, check_is_file, read_records, read_text
from moa_dspy.errors import DataError

SUFFIXES = (*FORMATS, ".json")


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

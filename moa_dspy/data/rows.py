"""Readers of tables (CSV, JSONL, JSON, Parquet, hub data sets) that return examples.

Every reader refuses a table that is broken or lacks a value, with one line that says where.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy

from moa_dspy.data.values import holds_answer, is_absent, plain_text
from moa_dspy.errors import DataError

_logger = logging.getLogger(__name__)

_SHOWN_PLACES = 5
_GOLD = "answer"

Record = tuple[str, dict[str, Any]]
"""Where the row is ("line 3"), and its columns."""


def read_rows(
    path: Path,
    *,
    inputs: Sequence[str],
    columns: Mapping[str, str] | None = None,
    outputs: Sequence[str] | None = None,
    drops_incomplete: bool = False,
) -> list[dspy.Example]:
    """Return one example per row of the file, in file order, with an `id` no other row has.

    A cell has no value if it is null, NaN, pandas' NA or NaT, or blank. A text such as "None"
    or "nan" is a value. A CSV row whose cells are all blank is no row.

    Args:
        path: A file in one of `FORMATS`, told by its suffix; text is UTF-8.
        inputs: The fields a program is given; every row must have them, and not all blank.
        columns: Our field name -> the file's column, for those that differ.
        outputs: The fields with right answers; every row must have a value in each. None means
            `answer` where the file has such a column.
        drops_incomplete: Whether a row without a value in one of the `outputs` is left out; how
            many is logged.

    Returns:
        Examples with their inputs set. `id` is text: the field `id`, or where the file has none
        the row's number, counted from 1.

    Raises:
        DataError: The file is missing, unreadable, empty or in no known format, a row is broken
            or lacks a field, or two rows share an id. It names the file, the line and the value.
    """
    path = Path(path)
    return make_examples(
        read_records(path),
        f"{path}",
        inputs=inputs,
        columns=columns,
        outputs=outputs,
        drops_incomplete=drops_incomplete,
    )


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


def make_examples(
    rows: Iterable[Record],
    source: str,
    *,
    inputs: Sequence[str],
    columns: Mapping[str, str] | None = None,
    outputs: Sequence[str] | None = None,
    drops_incomplete: bool = False,
) -> list[dspy.Example]:
    """Return the rows of any table as examples by the rules of `read_rows`.

    `source` is what errors call the table.
    """
    names = dict(columns or {})
    records = [(where, _renamed(row, names)) for where, row in rows]
    if not records:
        raise DataError(f"{source} has no rows.")
    if outputs is None:
        outputs = [_GOLD] if any(_GOLD in row for _, row in records) else []
    wanted = {*inputs, *names, *outputs} | ({"id"} & set(records[0][1]))
    if drops_incomplete:
        records = _with_answers(records, source, outputs)
    for where, row in records:
        _check_fields(row, sorted(wanted), f"{source}, {where}", names)
    _check_values(records, source, sorted(wanted), inputs=inputs, outputs=outputs)
    ids = _ids(records, source)
    return [
        dspy.Example({**row, "id": name}).with_inputs(*inputs)
        for name, (_, row) in zip(ids, records, strict=True)
    ]


def _ids(records: Sequence[Record], source: str) -> list[str]:
    """One text per row, all different; `source` is for the error."""
    places: dict[str, str] = {}
    for number, (where, row) in enumerate(records, start=1):
        name = plain_text(row.get("id", number))
        if name in places:
            raise DataError(f"{source}: id {name!r} is on {places[name]} and again on {where}.")
        places[name] = where
    return list(places)


def _renamed(row: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    taken = {column for column in names.values() if column in row}
    rest = {column: value for column, value in row.items() if column not in taken}
    return rest | {field: row[column] for field, column in names.items() if column in row}


def _check_fields(
    row: Mapping[str, Any], wanted: Sequence[str], place: str, names: Mapping[str, str]
) -> None:
    for field in wanted:
        if field not in row:
            column = f" (column {names[field]!r})" if field in names else ""
            known = ", ".join(sorted(map(str, row)))
            raise DataError(f"{place}: no field {field!r}{column}; the row has {known}.")


def _with_answers(records: list[Record], source: str, outputs: Sequence[str]) -> list[Record]:
    """Return the records with a value in each of the `outputs`, and log how many have none."""
    kept = [one for one in records if all(holds_answer(one[1].get(name)) for name in outputs)]
    if len(kept) < len(records):
        names = ", ".join(map(repr, outputs))
        _logger.warning(
            "%s: %d of %d rows are left out, which have no value in %s.",
            source, len(records) - len(kept), len(records), names,
        )  # fmt: skip
    if not kept:
        raise DataError(f"{source}: no row has a value in {', '.join(map(repr, outputs))}.")
    return kept


def _check_values(
    records: Sequence[Record],
    source: str,
    wanted: Sequence[str],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> None:
    """Check that no row lacks a value; an input may be an empty text beside one that is not."""
    for field in wanted:
        lacking = [
            (where, row[field])
            for where, row in records
            if _lacks(row, field, inputs=inputs, outputs=outputs)
        ]
        if not lacking:
            continue
        where, value = lacking[0]
        if len(lacking) == 1:
            kind = _kind_of_nothing(value)
            raise DataError(
                f"{source}, {where}: field {field!r} is {kind}, but it must have a value."
            )
        raise DataError(
            f"{source}: field {field!r} must have a value, but has none on "
            f"{_listed([where for where, _ in lacking])}."
        )


def _lacks(
    row: Mapping[str, Any], field: str, *, inputs: Sequence[str], outputs: Sequence[str]
) -> bool:
    value = row[field]
    if field in outputs:
        return not holds_answer(value)
    if not isinstance(value, str):
        return is_absent(value)
    if field in inputs:
        return all(is_absent(row[name]) for name in inputs)
    return field == "id" and is_absent(value)


def _kind_of_nothing(value: Any) -> str:
    if value is None:
        return "null"
    return "empty" if isinstance(value, str | list | tuple | Mapping) else "NaN"


def _listed(places: Sequence[str]) -> str:
    shown, more = ", ".join(places[:_SHOWN_PLACES]), len(places) - _SHOWN_PLACES
    return f"{shown} and {more} more" if more > 0 else shown


def check_outputs(
    rows: Sequence[dspy.Example], fields: Sequence[str], *, where: str = "The data"
) -> None:
    """Check that every row has a value in every field that a metric reads; costs no call.

    Args:
        rows: Examples; a row without `id` goes by its number, from 1.
        fields: Names of output fields, such as `answer`.
        where: The rows' name in errors, such as "Split 'test'".

    Raises:
        DataError: A row lacks a field, or a value in it: null, NaN, a blank text or an empty
            list. It names the rows, and the fields that the first of them has.
    """
    for field in fields:
        lacking = [
            (plain_text(row.get("id", number)), row)
            for number, row in enumerate(rows, start=1)
            if not holds_answer(row.get(field, None))
        ]
        if lacking:
            known = ", ".join(map(str, lacking[0][1].keys()))
            raise DataError(
                f"{where}: {len(lacking)} of {len(rows)} rows have no value in {field!r}, which "
                f"the metric reads: {_listed([repr(name) for name, _ in lacking])}; the first of "
                f"these has {known}. Name the column that holds it in `columns`."
            )


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
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    # The limit, 128 KiB by default, is the process's: it is put back at once.
    limit = csv.field_size_limit(max(len(text), 131_072))
    try:
        return [(f"line {reader.line_num}", cells) for cells in reader if cells]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is not CSV: {error}.") from error
    finally:
        csv.field_size_limit(limit)


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


def read_hub(
    name: str,
    *,
    config: str | None = None,
    split: str,
    inputs: Sequence[str],
    columns: Mapping[str, str] | None = None,
    outputs: Sequence[str] | None = None,
    drops_incomplete: bool = False,
) -> list[dspy.Example]:
    """Return one example per row of a split of a hub data set, in the data set's order.

    Args:
        name: Repository on the hub, "owner/name"; or a folder that `datasets` can load.
        config: Configuration, where the data set has several.
        split: As the data set calls it.
        inputs: The fields a program is given; every row must have them.
        columns: Our field name -> the data set's column, for those that differ.
        outputs: As of `read_rows`.
        drops_incomplete: As of `read_rows`.

    Returns:
        Examples as `read_rows` makes them.

    Raises:
        DataError: The split cannot be loaded, has no rows, or a row lacks a field.
    """
    source = f"{name} ({split})" if config is None else f"{name} ({config}, {split})"
    return make_examples(
        hub_records(name, config=config, split=split),
        source,
        inputs=inputs,
        columns=columns,
        outputs=outputs,
        drops_incomplete=drops_incomplete,
    )


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

"""Tables of records, and values in their cells: missing values, texts, equality."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import io
import json
import math
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence, Set
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from numbers import Number
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from moa_dspy.data.answers import normalise_text
from moa_dspy.errors import DataError, MetricError

_DELIMITERS = (",", ";", "\t", "|")
"""Possible delimiters of a CSV file; the comma is first, as it wins a tie."""
_SEPARATOR_LINE = re.compile(r'"?sep=([,;|\t])"?(?=[\r\n])', re.IGNORECASE)
"""A first line for Excel that names the delimiter."""

Record = tuple[str, dict[str, Any]]
"""The place of a row ("line 3"), and its columns."""


def read_records(path: Path) -> Iterator[Record]:
    """Yield the place and the columns of each row; the file's suffix determines the format.

    Raises:
        DataError: When a row is requested, if the file is missing, broken or in no known format.
    """
    if path.suffix.lower() not in FORMATS:
        formats = ", ".join(sorted(FORMATS))
        raise DataError(f"{path}: unknown format {path.suffix!r}; known ones are {formats}.")
    check_is_file(path)
    yield from FORMATS[path.suffix.lower()](path)


def check_is_file(path: Path) -> None:
    """Raise a `DataError` unless the path is a file."""
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise DataError(f"{path} {problem}: put the table there, or correct the path.")


def read_text(path: Path) -> str:
    """Return the UTF-8 text of a file; a byte order mark is left out."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start}."
        ) from error
    # Texts in UTF-16 of Latin letters can be decoded, but then hold a NUL beside each letter.
    if "\0" in text.partition("\n")[0]:
        raise DataError(f"{path} holds NUL bytes, as UTF-16 does, but must be UTF-8.")
    return text


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
        # Blank rows that spreadsheets leave below a table, such as ",,".
        if len(cells) > 1 and not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise DataError(
                f"{path}, {place} has {len(cells)} cells, but the header has {len(header)}."
            )
        yield place, dict(zip(header, cells, strict=True))


def _csv_lines(path: Path) -> list[tuple[str, list[str]]]:
    text = read_text(path)
    if (named := _SEPARATOR_LINE.match(text)) is not None:
        text = text[named.end() :]  # the line's end stays, as errors count lines
    delimiter = named[1] if named else max(_DELIMITERS, key=lambda d: len(_header_cells(text, d)))
    # Whether a blank after a delimiter is the file's style, as in its header.
    has_blanks = any(cell[:1] == " " for cell in _header_cells(text, delimiter)[1:])
    options: Any = {"delimiter": delimiter, "skipinitialspace": has_blanks}
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, **options)
    # The limit, 128 KiB by default, applies to the whole process, so it is restored at once.
    limit = csv.field_size_limit(max(len(text), 131_072))
    try:
        return [(f"line {reader.line_num}", cells) for cells in reader if cells]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is not CSV: {error}.") from error
    finally:
        csv.field_size_limit(limit)


def _header_cells(text: str, delimiter: str) -> list[str]:
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        return next(filter(None, rows), [])
    except csv.Error:
        return []


def _header(cells: list[str], place: str) -> list[str]:
    cells = [name.strip() for name in cells]
    for name in cells:
        if cells.count(name) > 1:
            raise DataError(f"{place}: column {name!r} comes twice.")
    return cells


def _parquet(path: Path) -> Iterator[Record]:
    # Imported here, as importing this library must not load pyarrow.
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{path} is not Parquet: {reason}.") from error
    for number, row in enumerate(rows, start=1):
        yield f"row {number}", {name: _as_text(value) for name, value in row.items()}


def _as_text(value: Any) -> Any:
    """Return UTF-8 bytes as text, as some writers do not mark texts."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


FORMATS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
    ".tsv": _csv,
}
"""Readers of a file by suffix, which yield the place and the columns of each row."""

SUFFIXES = (*FORMATS, ".json")
"""Suffixes that `records_of` reads."""


def find_file(source: Path, *names: str) -> Path:
    """Return the source if it is a file, else the file in the folder with one of the names.

    A name is a file name without its suffix; if no file has exactly this name, the only file that
    begins with it is used ("train" finds train-00000-of-00001.parquet).

    Raises:
        DataError: If there is no such source or file, or several begin with the name.
    """
    if not source.is_dir():
        check_is_file(source)
        return source
    files = [file for file in sorted(source.iterdir()) if file.suffix.lower() in SUFFIXES]
    for name in names:
        exact = [file for file in files if file.stem == name]
        matches = exact or [file for file in files if file.name.startswith(name)]
        if len(matches) > 1:
            shown = ", ".join(file.name for file in matches)
            raise DataError(f"{source} has several files for {name!r} ({shown}): name one.")
        if matches:
            return matches[0]
    expected = " or ".join(repr(name) for name in names)
    raise DataError(f"{source} has no file {expected} ({', '.join(SUFFIXES)}).")


def records_of(path: Path) -> Iterator[Record]:
    """Yield the rows of a file: any format of `read_rows`, or JSON.

    JSON is a list of objects, or an object of which one value is such a list.

    Raises:
        DataError: If the file is not in the format of its suffix.
    """
    if path.suffix.lower() != ".json":
        yield from read_records(path)
        return
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}.") from error
    held = list(content.values()) if isinstance(content, dict) else [content]
    tables = [rows for rows in held if isinstance(rows, list) and {*map(type, rows)} <= {dict}]
    if len(tables) != 1:
        shown = f"has {', '.join(map(repr, [*content][:9]))}" if held != [content] else "is none"
        raise DataError(f"{path} must hold a list of objects, or one under any key, but {shown}.")
    for number, row in enumerate(tables[0], start=1):
        yield f"row {number}", row


_LONGEST_EXPONENT = 1000
_ABSENT_TYPES = ("NAType", "NaTType")
"""Types of pandas' values for a missing cell; pandas must not be imported for this."""


def is_absent(value: Any) -> bool:
    """Return whether a cell holds no value: None, NaN, pandas' NA and NaT, or a blank text.

    A text such as "None", "nan" or "N/A" is a value: it may be the right answer.
    """
    if value is None or type(value).__name__ in _ABSENT_TYPES:
        return True
    if isinstance(value, str):
        return not value.strip()
    return _is_nan(value)


def holds_answer(value: Any) -> bool:
    """Return whether a cell of right answers has at least one; a list may be empty."""
    value = _python(value)
    if isinstance(value, Mapping):
        return any(map(holds_answer, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(holds_answer, value))
    return not is_absent(value)


def plain_text(value: Any) -> str:
    """Return a value as text; a number without exponent and without ".0".

    A time at midnight becomes its date, as pandas has no separate type for dates.
    """
    if isinstance(value, Enum):
        return plain_text(value.value)
    value = _as_text(_python(value))
    if isinstance(value, datetime.datetime) and value.timetz() == datetime.time():
        value = value.date()
    if isinstance(value, Number) and not isinstance(value, bool | complex):
        return _number(value)
    return str(value)


def comparable(value: Any, normalise: Callable[[str], str]) -> Hashable:
    """Return a hashable that is equal only for equal values.

    Numbers are compared by value, mappings and sets in any order, models and dataclasses field by
    field, and all texts after ``normalise`` (keys after `normalise_text`). None, booleans, numbers
    and texts are never equal to each other.

    Args:
        value: Any value of a signature's output.
        normalise: Maps texts that are equal answers to equal texts.
    """
    if isinstance(value, Enum):
        return ("enum", type(value).__qualname__, value.name)
    value = _python(value)
    if isinstance(value, str):
        return normalise(value)
    if value is None or _is_nan(value):
        return ("absent",)
    if isinstance(value, bool | bytes):
        return (type(value).__name__, value)
    if isinstance(value, Number):
        return ("number", _number_by_value(value))
    if isinstance(value, datetime.date | datetime.time):
        return ("time", type(value).__name__, _moment(value))
    return _container(value, normalise)


def _container(value: Any, normalise: Callable[[str], str]) -> Hashable:
    if fields := _fields(value):
        return (type(value).__qualname__, comparable(fields, normalise))
    if isinstance(value, Mapping):
        pairs = [
            (comparable(k, normalise_text), comparable(v, normalise)) for k, v in value.items()
        ]
        return ("mapping", *sorted(pairs, key=repr))
    if isinstance(value, Set):
        return ("set", *sorted({comparable(item, normalise) for item in value}, key=repr))
    if isinstance(value, Sequence):
        return ("list", *(comparable(item, normalise) for item in value))
    return (type(value).__qualname__, normalise(str(value)))


def accepted_answers(gold: Any) -> list[Any]:
    """Return the answers that count as right: the value itself, or each of a list of them.

    A mapping is read in the form of SQuAD ("text") or TriviaQA ("value" and "aliases").

    Raises:
        MetricError: If there is none, or the mapping has none of these keys.
    """
    if isinstance(gold, Mapping):
        held = [gold[key] for key in ("text", "value", "aliases") if key in gold]
        if not held:
            raise MetricError(
                "The right answer must be a value, a list of accepted ones, or a mapping with "
                f"'text', or 'value' and 'aliases', but has the keys {', '.join(map(str, gold))}."
            )
        answers = [answer for part in held for answer in _items(part)]
    else:
        answers = _items(gold)
    if not (present := [answer for answer in answers if not is_absent(answer)]):
        raise MetricError(f"The right answer is missing: it is {gold!r}.")
    return present


def is_container(value: Any) -> bool:
    """Return whether a value contains others, such as a list, a mapping or a model."""
    if isinstance(value, str | bytes):  # most cells
        return False
    return isinstance(_python(value), Mapping | Set | Sequence) or bool(_fields(value))


def _items(value: Any) -> list[Any]:
    value = _python(value)
    return list(value) if isinstance(value, list | tuple | set | frozenset) else [value]


def _python(value: Any) -> Any:
    """Return numpy scalars and arrays as Python values."""
    return value.tolist() if type(value).__module__ == "numpy" else value


def _fields(value: Any) -> dict[str, Any]:
    if isinstance(value, BaseModel):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.compare}
    return {}


def _is_nan(value: Any) -> bool:
    if isinstance(value, Decimal):
        return value.is_nan()
    return isinstance(value, float) and math.isnan(value)


def _moment(value: datetime.date | datetime.time) -> str:
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        value = value.astimezone(datetime.UTC)
    if isinstance(value, datetime.time) and (offset := value.utcoffset()) is not None:
        day = datetime.datetime.combine(datetime.date(2000, 1, 2), value, datetime.UTC)
        return f"{(day - offset).time().isoformat()} UTC"
    return value.isoformat()


def _number_by_value(value: Any) -> str:
    """Return the canonical text of a number of any type."""
    if isinstance(value, complex):
        return str(value) if value.imag else _number(value.real)
    if isinstance(value, Fraction):
        rest = value.denominator
        while any(rest % prime == 0 for prime in (2, 5)):
            rest //= 2 if rest % 2 == 0 else 5
        if rest == 1 and (places := value.denominator.bit_length()) <= _LONGEST_EXPONENT:
            # The number of places is enough, as the denominator divides their power of ten.
            return _number(Decimal(f"{int(value * 10**places)}e-{places}"))
    return _number(value)


def _number(value: Any) -> str:
    """Return the canonical text of a number."""
    if isinstance(value, Fraction) and value.denominator != 1:
        return f"{value.numerator}/{value.denominator}"
    exact = _decimal(value)
    if not exact.is_finite():
        return str(exact).lower()
    sign, digits, exponent = exact.as_tuple()
    text = "".join(map(str, digits)).lstrip("0")
    if not text:
        return "0"
    kept = text.rstrip("0")
    power = int(exponent) + len(text) - len(kept)
    if abs(power) > _LONGEST_EXPONENT + len(kept):
        shown = f"{kept}e{power}"
    elif power >= 0:
        shown = kept + "0" * power
    else:
        padded = kept.rjust(1 - power, "0")
        shown = f"{padded[:power]}.{padded[power:]}"
    return f"-{shown}" if sign else shown


def _decimal(value: Any) -> Decimal:
    if isinstance(value, Decimal):
        return value
    # The digits that Python prints, not those of the nearest binary number.
    return Decimal(repr(float(value)) if isinstance(value, float) else int(value))


_TRUTHS = {
    **dict.fromkeys(("true", "t", "yes", "y", "correct", "right", "pass", "passed"), 1.0),
    **dict.fromkeys(("false", "f", "no", "n", "incorrect", "wrong", "fail", "failed"), 0.0),
}
_NO_SCORE = frozenset({"nan", "<na>", "na", "n/a", "none", "null", "nat"})


def score_in(value: Any, place: str, *, has_response: bool) -> float | None:
    """Return the score in a cell as a number in [0, 1]; None if it holds none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    text = str(value).strip().casefold()
    if text in _NO_SCORE and not has_response:
        return None
    try:
        # In [0, 1], a comma can only be the decimal comma of some languages.
        number = text.replace(",", ".") if isinstance(value, str) else value
        score = _TRUTHS[text] if text in _TRUTHS else float(number)
    except (TypeError, ValueError):
        score = math.nan
    if not -1e-9 <= score <= 1 + 1e-9:
        hint = "; divide scores up to 100 by 100" if 1 < score <= 100 else ""
        hint = "; words are read such as true, no, correct" if text.isalpha() else hint
        raise DataError(f"{place} must be a number in [0, 1], but is {value!r}{hint}.")
    # Means of floats may exceed the range by a rounding error; larger values are of another scale.
    return min(max(score, 0.0), 1.0)


def cost_in(value: Any, place: str, *, is_count: bool) -> float | None:
    """Return the cost in a cell, a number of at least 0; None if it holds none."""
    if is_absent(value):
        return None
    try:
        cost = float(value)
    except (TypeError, ValueError):
        cost = math.nan
    if not 0 <= cost < math.inf:
        raise DataError(f"{place} must be a number of at least 0, but is {value!r}.")
    return round(cost) if is_count else cost
